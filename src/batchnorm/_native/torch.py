"""The kernels as PyTorch operators, without derivatives: `torch.ops.batchnorm`.

Every operator takes x as the view `[A, G, B, C, D]`, weights as `[A, G or 1, B, 1, D]` with any
size 1 instead, and per-channel vectors of shape `[G, C]` in the statistics' type, count `[G, 1]`.

Importing this module defines the operators; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.library import DTYPES, check, load

_kernels = load()
HUGE = 32 << 20  # bytes of an output from which fresh memory costs page faults
_CODES = {getattr(torch, name): code for name, code in DTYPES.items()}

_DEFINITIONS = {
    "moments": "(Tensor x, Tensor? weights) -> (Tensor, Tensor, Tensor, Tensor)",
    "standardize": "(Tensor x, Tensor? weights, Tensor mean, Tensor? remainder, Tensor variance, "
    "Tensor? count, Tensor? scale, Tensor? offset, Tensor? live, float epsilon, int activation, "
    "bool frozen) -> Tensor",
    "forward": "(Tensor x, Tensor? weights, Tensor? scale, Tensor? offset, float epsilon, "
    "int activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "backward": "(Tensor x, Tensor dy, Tensor? weights, Tensor mean, Tensor? remainder, "
    "Tensor variance, Tensor? count, Tensor? scale, Tensor? offset, Tensor? live, float epsilon, "
    "int activation, bool frozen) -> (Tensor, Tensor, Tensor)",
    "backward_sums": "(Tensor x, Tensor dy, Tensor? weights, Tensor mean, Tensor? remainder, "
    "Tensor variance, Tensor? scale, Tensor? offset, float epsilon, int activation) "
    "-> (Tensor, Tensor)",
    "backward_input": "(Tensor x, Tensor dy, Tensor? weights, Tensor mean, Tensor? remainder, "
    "Tensor variance, Tensor count, Tensor? scale, Tensor? offset, Tensor? live, Tensor sum_dy, "
    "Tensor sum_dy_xh, float epsilon, int activation) -> Tensor",
}
_registry = torch.library.Library("batchnorm", "DEF")
for _name, _schema in _DEFINITIONS.items():
    _registry.define(_name + _schema)


@functools.lru_cache(maxsize=1024)
def _sizes(*sizes: int) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _statistics_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _dense(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x in an order that the kernels read, and its sizes in that order; a copy only if need be.

    `channels_last` memory holds the channels behind D: the same kernels, with D in front of C.
    """
    a, g, b, c, d = x.shape
    if x.is_contiguous():
        return x, (a, g, b, c, d)
    if x.transpose(3, 4).is_contiguous():
        return x, (a, g, b * d, c, 1)
    return x.contiguous(), (a, g, b, c, d)


def _like(dy: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """dy in the memory order that `sizes` tells of."""
    if sizes == tuple(dy.shape):
        return dy.contiguous()
    return dy.transpose(3, 4).contiguous().transpose(3, 4)


def _weights(weights: Tensor | None, x: Tensor, sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Pointer and sizes of the weights, and what keeps them alive."""
    if weights is None:
        return None, None, None
    a, g, b, one, d = weights.shape
    if one != 1:
        raise ValueError(
            "batchnorm kernels: weights must have the shape [A, G or 1, B, 1, D]; got "
            f"{tuple(weights.shape)}."
        )
    if sizes != tuple(x.shape) and (b, d) != (1, 1):
        b, d = sizes[2], 1  # B and D are one run now
        weights = weights.expand(-1, -1, x.shape[2], 1, x.shape[4])
    weights = weights.to(_statistics_type(x)).contiguous()
    return weights.data_ptr(), _sizes(a, g, b, d), weights


def _vector(vector: Tensor | None, x: Tensor, columns: int | None = None) -> int | None:
    """The pointer of a per-channel vector; the kernels are given no other memory than this."""
    if vector is None:
        return None
    expected = x.shape[1] * (x.shape[3] if columns is None else columns)
    if (
        vector.numel() != expected
        or vector.dtype is not _statistics_type(x)
        or not vector.is_contiguous()
    ):
        raise ValueError(
            f"batchnorm kernels: a per-channel vector must be a contiguous "
            f"{_statistics_type(x)} of {expected} elements; got {vector.dtype} of shape "
            f"{tuple(vector.shape)}."
        )
    return vector.data_ptr()


def _fresh(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    if out.nbytes >= HUGE:
        _kernels.bn_advise_huge(out.data_ptr(), out.nbytes)
    return out


def _new_vectors(x: Tensor, count: int) -> list[Tensor]:
    shape = (x.shape[1], x.shape[3])
    return [x.new_empty(shape, dtype=_statistics_type(x)) for _ in range(count)]


def _checked(dy: Tensor, x: Tensor) -> Tensor:
    if dy.dtype is not x.dtype or dy.shape != x.shape:
        raise ValueError(
            f"batchnorm kernels: dy must be like x, {x.dtype} of shape {tuple(x.shape)}; got "
            f"{dy.dtype} of shape {tuple(dy.shape)}."
        )
    return dy


def _moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    x, sizes = _dense(x)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    mean, remainder, variance = _new_vectors(x, 3)
    count = x.new_empty((x.shape[1], 1), dtype=_statistics_type(x))
    outputs = (mean, remainder, variance, count)
    code = _kernels.bn_moments(
        _CODES[x.dtype], _sizes(*sizes), x.data_ptr(), w, w_sizes, *(o.data_ptr() for o in outputs)
    )
    check(_kernels, code)
    return outputs


def _standardize(
    x: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    remainder: Tensor | None,
    variance: Tensor,
    count: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None,
    epsilon: float,
    activation: int,
    frozen: bool,
) -> Tensor:
    x, sizes = _dense(x)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    y = _fresh(x)
    code = _kernels.bn_standardize(
        _CODES[x.dtype],
        _sizes(*sizes),
        x.data_ptr(),
        w,
        w_sizes,
        _vector(mean, x),
        _vector(remainder, x),
        _vector(variance, x),
        epsilon,
        _vector(scale, x),
        _vector(offset, x),
        activation,
        y.data_ptr(),
    )
    check(_kernels, code)
    return y


def _forward(
    x: Tensor,
    weights: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, ...]:
    x, sizes = _dense(x)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    y = _fresh(x)
    mean, remainder, variance = _new_vectors(x, 3)
    count = x.new_empty((x.shape[1], 1), dtype=_statistics_type(x))
    outputs = (mean, remainder, variance, count, y)
    code = _kernels.bn_forward(
        _CODES[x.dtype],
        _sizes(*sizes),
        x.data_ptr(),
        w,
        w_sizes,
        epsilon,
        _vector(scale, x),
        _vector(offset, x),
        activation,
        *(o.data_ptr() for o in outputs),
    )
    check(_kernels, code)
    return y, mean, remainder, variance, count


def _backward(
    x: Tensor,
    dy: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    remainder: Tensor | None,
    variance: Tensor,
    count: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None,
    epsilon: float,
    activation: int,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, sizes = _dense(x)
    dy = _like(_checked(dy, x), sizes)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    dx = _fresh(x)
    sum_dy, sum_dy_xh = _new_vectors(x, 2)
    code = _kernels.bn_backward(
        _CODES[x.dtype],
        _sizes(*sizes),
        x.data_ptr(),
        dy.data_ptr(),
        w,
        w_sizes,
        _vector(count, x, columns=1),
        _vector(mean, x),
        _vector(remainder, x),
        _vector(variance, x),
        epsilon,
        _vector(scale, x),
        _vector(offset, x),
        activation,
        _vector(live, x),
        frozen,
        sum_dy.data_ptr(),
        sum_dy_xh.data_ptr(),
        dx.data_ptr(),
    )
    check(_kernels, code)
    return dx, sum_dy, sum_dy_xh


def _backward_sums(
    x: Tensor,
    dy: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    remainder: Tensor | None,
    variance: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, Tensor]:
    x, sizes = _dense(x)
    dy = _like(_checked(dy, x), sizes)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    sum_dy, sum_dy_xh = _new_vectors(x, 2)
    code = _kernels.bn_backward_sums(
        _CODES[x.dtype],
        _sizes(*sizes),
        x.data_ptr(),
        dy.data_ptr(),
        w,
        w_sizes,
        _vector(mean, x),
        _vector(remainder, x),
        _vector(variance, x),
        epsilon,
        _vector(scale, x),
        _vector(offset, x),
        activation,
        sum_dy.data_ptr(),
        sum_dy_xh.data_ptr(),
    )
    check(_kernels, code)
    return sum_dy, sum_dy_xh


def _backward_input(
    x: Tensor,
    dy: Tensor,
    weights: Tensor | None,
    mean: Tensor,
    remainder: Tensor | None,
    variance: Tensor,
    count: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xh: Tensor,
    epsilon: float,
    activation: int,
) -> Tensor:
    x, sizes = _dense(x)
    dy = _like(_checked(dy, x), sizes)
    w, w_sizes, _alive = _weights(weights, x, sizes)
    dx = _fresh(x)
    code = _kernels.bn_backward_input(
        _CODES[x.dtype],
        _sizes(*sizes),
        x.data_ptr(),
        dy.data_ptr(),
        w,
        w_sizes,
        _vector(count, x, columns=1),
        _vector(mean, x),
        _vector(remainder, x),
        _vector(variance, x),
        epsilon,
        _vector(scale, x),
        _vector(offset, x),
        activation,
        _vector(live, x),
        False,
        _vector(sum_dy, x),
        _vector(sum_dy_xh, x),
        dx.data_ptr(),
    )
    check(_kernels, code)
    return dx


def _fake_moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    return *_new_vectors(x, 3), x.new_empty((x.shape[1], 1), dtype=_statistics_type(x))


def _fake_standardize(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_forward(x: Tensor, weights: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_moments(x, weights)


def _fake_backward(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_new_vectors(x, 2)


def _fake_backward_sums(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(_new_vectors(x, 2))


def one_by_one(operator: Any) -> Any:
    """A vmap rule: the operator on each slice."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        slices = [
            operator(
                *(
                    value if dim is None else value.select(dim, i)
                    for value, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(slices[0], Tensor):
            return torch.stack(slices), 0
        return tuple(torch.stack(parts) for parts in zip(*slices, strict=True)), tuple(
            0 for _ in slices[0]
        )

    return rule


# What the operators run; callable on plain tensors too, past torch's dispatcher.
kernels: dict[str, Callable[..., Any]] = {
    "moments": _moments,
    "standardize": _standardize,
    "forward": _forward,
    "backward": _backward,
    "backward_sums": _backward_sums,
    "backward_input": _backward_input,
}
for _name, _fake in (
    ("moments", _fake_moments),
    ("standardize", _fake_standardize),
    ("forward", _fake_forward),
    ("backward", _fake_backward),
    ("backward_sums", _fake_backward_sums),
    ("backward_input", _fake_standardize),
):
    _registry.impl(_name, kernels[_name], "CPU")
    torch.library.register_fake(f"batchnorm::{_name}", _fake)
    torch.library.register_vmap(
        f"batchnorm::{_name}", one_by_one(getattr(torch.ops.batchnorm, _name))
    )


def borrow_threads() -> bool:
    """Runs the kernels on torch's own OpenMP team: two spinning teams slow each other down."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    return any(_kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
