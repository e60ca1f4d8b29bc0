"""Trust at first use: each GPU kernel is compared with the composite path, on small tensors.

A compiler, a driver or a device that nobody tried may make a kernel wrong; a wrong number must not
come out of a batch normalization without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from batchnorm._axes import View
from batchnorm._moments import Moments
from batchnorm.backends import composite, derivative
from batchnorm.backends.composite import Case
from batchnorm.backends.fused import ACTIVATIONS
from batchnorm.backends.torch import operations

# Of the largest value: roundings to the type, and to float32 for vectors.
ROUNDING = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
EPSILON = 1e-3
# One that is read by rows, with a tail and several splits; one by columns, in groups.
BY_ROWS, BY_COLUMNS = (12, 1, 1, 3, 1030), (2, 3, 301, 5, 1)

Pair = tuple[str, torch.Tensor, torch.Tensor]


def mismatch(kernels: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> str | None:
    """The first kernel that differs from the composite path, and by how much; None where none does.

    Args:
        kernels: functions of plain tensors, by the names of the operators.
    """
    statistics = torch.float64 if dtype is torch.float64 else torch.float32
    for check in (_together, _one_by_one):
        for name, got, wanted in check(kernels, device, dtype):
            error = (got.double() - wanted.double().reshape(got.shape)).abs().max()
            size = wanted.double().abs().max().clamp(min=1)
            bar = ROUNDING[dtype] if got.dtype is dtype else ROUNDING[statistics]
            if not error <= bar * size:  # NaN is none
                return (
                    f"{name} is off by {float(error / size):.1e} of the largest value in "
                    f"{str(dtype).removeprefix('torch.')}"
                )
    return None


def _tensor(sizes: tuple[int, ...], device: torch.device, dtype: Any, step: float) -> torch.Tensor:
    """Numbers between -1 and 1 without a pattern, the same whatever the random state is."""
    count = 1
    for size in sizes:
        count *= size
    numbers = torch.arange(count, dtype=torch.float64, device=device)
    return torch.sin(numbers * numbers * step + numbers).reshape(sizes).to(dtype)


def _given(sizes: tuple[int, ...], device: torch.device, dtype: Any) -> tuple[torch.Tensor, ...]:
    """x far from zero, dy, scale and offset."""
    _, g, _, c, _ = sizes
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x = 2 * _tensor(sizes, device, dtype, 0.37) + 7
    scale, offset = (_tensor((g, c), device, wide, step) for step in (0.7, 0.3))
    return x, _tensor(sizes, device, dtype, 0.59), scale + 2, offset


def _wanted(
    x: torch.Tensor, dy: torch.Tensor, case: Case, scale: torch.Tensor, offset: torch.Tensor
) -> tuple[Moments, torch.Tensor, derivative.Slopes]:
    """Moments, y and the derivatives, in array operations."""
    found, _ = composite.measured(operations, x, case)
    y = composite.standardize(operations, x, case, found, scale, offset)
    slopes = derivative.backward(operations, x, dy, case, found, scale, offset)
    return found, y, slopes


def _moments(got: Any, wanted: Moments) -> Iterator[Pair]:
    mean, remainder, variance, count = got
    yield "moments", mean.double() + remainder, wanted.mean.double() + wanted.remainder
    yield "moments", variance, wanted.variance
    yield "moments", count, wanted.count


def _together(kernels: Any, device: torch.device, dtype: Any) -> Iterator[Pair]:
    """Two launches each way: what is merged in between is merged by the second."""
    sizes = BY_ROWS
    x, dy, scale, offset = _given(sizes, device, dtype)
    how = (EPSILON, ACTIVATIONS["relu"])
    found, y, slopes = _wanted(x, dy, Case(View.of(sizes), None, EPSILON, "relu"), scale, offset)
    got, *measured = kernels["forward"](x, sizes, None, scale, offset, *how)
    yield from _moments(measured, found)
    yield "standardize", got, y
    vectors = (*measured, scale, offset, None)
    dx, sum_dy, sum_dy_xh = kernels["backward"](x, sizes, dy, None, *vectors, *how, False)
    yield "backward_sums", sum_dy, slopes.offset
    yield "backward_sums", sum_dy_xh, slopes.scale
    yield "backward_input", dx, slopes.x


def _one_by_one(kernels: Any, device: torch.device, dtype: Any) -> Iterator[Pair]:
    """Weights, groups and a residual; every kernel by itself, and the merges too."""
    sizes = BY_COLUMNS
    a, _, b, _, _ = sizes
    x, dy, scale, offset = _given(sizes, device, dtype)
    weights = _tensor((a, 1, b, 1, 1), device, scale.dtype, 0.83).clamp(min=0)
    case = Case(View.of(sizes), weights, EPSILON, None)
    found, y, slopes = _wanted(x, dy, case, scale, offset)
    measured = kernels["moments"](x, sizes, weights)
    yield from _moments(measured, found)
    how = (EPSILON, ACTIVATIONS[None])
    vectors = (*measured, scale, offset, None)
    got = kernels["standardize_add"](x, sizes, dy, weights, *vectors, *how, False)
    yield "standardize", got, (y.double() + dy).to(dtype)
    operands = (x, sizes, dy, weights, *measured[:3], scale, offset)
    sums = kernels["backward_sums"](*operands, *how)
    yield "backward_sums", sums[0], slopes.offset
    yield "backward_sums", sums[1], slopes.scale
    got = kernels["backward_input"](x, sizes, dy, weights, *vectors, *sums, *how)
    yield "backward_input", got, slopes.x
