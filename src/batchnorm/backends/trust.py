"""Trust at first use: each GPU kernel is compared with the composite path, on small tensors.

A compiler, a driver or a device that nobody tried may make a kernel wrong; a wrong number must not
come out of a batch normalization without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from batchnorm._axes import View
from batchnorm._moments import Moments
from batchnorm.backends import composite, derivative
from batchnorm.backends.composite import Case, statistics_dtype
from batchnorm.backends.fused import ACTIVATIONS

Tensor = Any
# Of the largest value: roundings to the type, and to float32 for vectors.
ROUNDING = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
EPSILON = 1e-3
# One that is read by rows, with a tail and several splits; one by columns, in groups.
BY_ROWS, BY_COLUMNS = (12, 1, 1, 3, 1030), (2, 3, 301, 5, 1)

Pair = tuple[str, np.ndarray, np.ndarray, str]  # a kernel, what it gave, what it should, the type


class Where(NamedTuple):
    """Whose kernels, and on tensors of which type.

    `tensor` makes one of a NumPy array and the name of a type, `array` a float64 array of one.
    """

    ops: Any
    kernels: Mapping[str, Any]
    dtype: str
    tensor: Callable[[np.ndarray, str], Tensor]
    array: Callable[[Tensor], np.ndarray]


def mismatch(where: Where) -> str | None:
    """The first kernel that differs from the composite path, and by how much; None where none does.

    The kernels are functions of plain tensors by the names of `operands.KERNELS`, and take what is
    said there.
    """
    for check in (_together, _one_by_one):
        for name, got, wanted, dtype in check(where):
            error = np.abs(got - wanted.reshape(got.shape)).max()
            size = max(np.abs(wanted).max(), 1.0)
            if not error <= ROUNDING[dtype] * size:  # NaN is none
                return f"{name} is off by {error / size:.1e} of the largest value in {where.dtype}"
    return None


def _pair(where: Where, name: str, got: Tensor, wanted: Tensor) -> Pair:
    return name, where.array(got), where.array(wanted), where.ops.dtype(got)


def _numbers(sizes: tuple[int, ...], step: float) -> np.ndarray:
    """Numbers between -1 and 1 without a pattern, the same whatever the random state is."""
    numbers = np.arange(np.prod(sizes), dtype=np.float64)
    return np.sin(numbers * numbers * step + numbers).reshape(sizes)


def _given(where: Where, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """x far from zero, dy, scale and offset."""
    _, g, _, c, _ = sizes
    wide = statistics_dtype(where.dtype)
    x = 2 * _numbers(sizes, 0.37) + 7
    scale, offset = (_numbers((g, c), step) for step in (0.7, 0.3))
    dy = _numbers(sizes, 0.59)
    return (
        *(where.tensor(one, where.dtype) for one in (x, dy)),
        *(where.tensor(one, wide) for one in (scale + 2, offset)),
    )


def _wanted(
    where: Where, x: Tensor, dy: Tensor, case: Case, scale: Tensor, offset: Tensor
) -> tuple[Moments, Tensor, derivative.Slopes]:
    """Moments, y and the derivatives, in array operations."""
    found, _ = composite.measured(where.ops, x, case)
    y = composite.standardize(where.ops, x, case, found, scale, offset)
    slopes = derivative.backward(where.ops, x, dy, case, found, scale, offset)
    return found, y, slopes


def _moments(where: Where, got: Any, wanted: Moments) -> Iterator[Pair]:
    mean, remainder, variance, count = got
    name, high, right, dtype = _pair(where, "moments", mean, wanted.mean)
    yield name, high + where.array(remainder), right + where.array(wanted.remainder), dtype
    yield _pair(where, "moments", variance, wanted.variance)
    yield _pair(where, "moments", count, wanted.count)


def _together(where: Where) -> Iterator[Pair]:
    """Two launches each way: what is merged in between is merged by the second."""
    sizes, kernels = BY_ROWS, where.kernels
    x, dy, scale, offset = _given(where, sizes)
    how = (EPSILON, ACTIVATIONS["relu"])
    case = Case(View.of(sizes), None, EPSILON, "relu")
    found, y, slopes = _wanted(where, x, dy, case, scale, offset)
    got, *measured = kernels["forward"](x, sizes, None, scale, offset, *how)
    yield from _moments(where, measured, found)
    yield _pair(where, "standardize", got, y)
    vectors = (*measured, scale, offset, None)
    dx, sum_dy, sum_dy_xh = kernels["backward"](x, sizes, dy, None, *vectors, *how, False)
    yield _pair(where, "backward_sums", sum_dy, slopes.offset)
    yield _pair(where, "backward_sums", sum_dy_xh, slopes.scale)
    yield _pair(where, "backward_input", dx, slopes.x)


def _one_by_one(where: Where) -> Iterator[Pair]:
    """Weights, groups and a residual; every kernel by itself, and the merges too."""
    sizes, kernels = BY_COLUMNS, where.kernels
    a, _, b, _, _ = sizes
    x, dy, scale, offset = _given(where, sizes)
    weights = np.maximum(_numbers((a, 1, b, 1, 1), 0.83), 0)
    weights = where.tensor(weights, statistics_dtype(where.dtype))
    case = Case(View.of(sizes), weights, EPSILON, None)
    found, y, slopes = _wanted(where, x, dy, case, scale, offset)
    measured = kernels["moments"](x, sizes, weights)
    yield from _moments(where, measured, found)
    how = (EPSILON, ACTIVATIONS[None])
    vectors = (*measured, scale, offset, None)
    got = kernels["standardize_add"](x, sizes, dy, weights, *vectors, *how, False)
    added = where.tensor(where.array(y) + where.array(dy), where.dtype)
    yield _pair(where, "standardize", got, added)
    operands = (x, sizes, dy, weights, *measured[:3], scale, offset)
    sums = kernels["backward_sums"](*operands, *how)
    yield _pair(where, "backward_sums", sums[0], slopes.offset)
    yield _pair(where, "backward_sums", sums[1], slopes.scale)
    got = kernels["backward_input"](x, sizes, dy, weights, *vectors, *sums, *how)
    yield _pair(where, "backward_input", got, slopes.x)
