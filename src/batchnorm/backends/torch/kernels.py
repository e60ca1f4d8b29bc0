"""The kernels as PyTorch operators, without derivatives: `torch.ops.batchnorm`.

Every operator takes x with the sizes `[A, G, B, C, D]` that it reads as, weights as
`[A, G or 1, B, 1, D]` with any size 1 instead, and per-channel vectors of G * C elements in the
statistics' type, count of G. Results like x have its shape, gradients that of their vector.

Importing this module defines the operators; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.library import check
from batchnorm.backends.torch import call
from batchnorm.backends.torch.call import Call, arranged, like, statistics_type

_X = "Tensor x, SymInt[] sizes"
_MEAN = "Tensor mean, Tensor? remainder, Tensor variance"
_AFFINE = "Tensor? scale, Tensor? offset"
_DEFINITIONS = {
    "moments": f"({_X}, Tensor? weights) -> (Tensor, Tensor, Tensor, Tensor)",
    "standardize": f"({_X}, Tensor? weights, {_MEAN}, Tensor? count, {_AFFINE}, Tensor? live, "
    "float epsilon, int activation, bool frozen) -> Tensor",
    "forward": f"({_X}, Tensor? weights, {_AFFINE}, float epsilon, int activation) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "backward": f"({_X}, Tensor dy, Tensor? weights, {_MEAN}, Tensor? count, {_AFFINE}, "
    "Tensor? live, float epsilon, int activation, bool frozen) -> (Tensor, Tensor, Tensor)",
    "backward_sums": f"({_X}, Tensor dy, Tensor? weights, {_MEAN}, {_AFFINE}, float epsilon, "
    "int activation) -> (Tensor, Tensor)",
    "backward_input": f"({_X}, Tensor dy, Tensor? weights, {_MEAN}, Tensor count, {_AFFINE}, "
    "Tensor? live, Tensor sum_dy, Tensor sum_dy_xh, float epsilon, int activation) -> Tensor",
}
_registry = torch.library.Library("batchnorm", "DEF")
for _name, _schema in _DEFINITIONS.items():
    _registry.define(_name + _schema)


def _moments(x: Tensor, sizes: Sequence[int], weights: Tensor | None) -> tuple[Tensor, ...]:
    call = Call(x, sizes, weights)
    outputs = call.fresh_moments()
    call.run("bn_moments", *map(Tensor.data_ptr, outputs))
    return outputs


def _standardize(
    x: Tensor,
    sizes: Sequence[int],
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
    call = Call(x, sizes, weights)
    y = call.fresh()
    call.run(
        "bn_standardize",
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        y.data_ptr(),
    )
    return y


def _forward(
    x: Tensor,
    sizes: Sequence[int],
    weights: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, ...]:
    call = Call(x, sizes, weights)
    y, moments = call.fresh(), call.fresh_moments()
    call.run(
        "bn_forward",
        epsilon,
        call.vector(scale),
        call.vector(offset),
        activation,
        *map(Tensor.data_ptr, (*moments, y)),
    )
    return y, *moments


def _sums(mean: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """sum_dy and sum_dy_xh, to be written: the gradients of offset and scale, in their shapes."""
    return tuple(torch.empty_like(mean if one is None else one) for one in (offset, scale))


def _backward(
    x: Tensor,
    sizes: Sequence[int],
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
    call = Call(x, sizes, weights, dy)
    dx, (sum_dy, sum_dy_xh) = call.fresh(), _sums(mean, scale, offset)
    call.run(
        "bn_backward",
        call.count(count),
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        call.vector(live),
        frozen,
        *map(Tensor.data_ptr, (sum_dy, sum_dy_xh, dx)),
    )
    return dx, sum_dy, sum_dy_xh


def _backward_sums(
    x: Tensor,
    sizes: Sequence[int],
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
    call = Call(x, sizes, weights, dy)
    sum_dy, sum_dy_xh = _sums(mean, scale, offset)
    call.run(
        "bn_backward_sums",
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        sum_dy.data_ptr(),
        sum_dy_xh.data_ptr(),
    )
    return sum_dy, sum_dy_xh


def _backward_input(
    x: Tensor,
    sizes: Sequence[int],
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
    call = Call(x, sizes, weights, dy)
    dx = call.fresh()
    call.run(
        "bn_backward_input",
        call.count(count),
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        call.vector(live),
        False,
        call.vector(sum_dy),
        call.vector(sum_dy_xh),
        dx.data_ptr(),
    )
    return dx


def remember(
    state: Mapping[str, Tensor],
    moments: Sequence[Tensor],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, Tensor] | None:
    """The moving averages and counters after a step; None for a state that is laid out otherwise.

    No operator: nothing is differentiated, and a tracer takes another way.
    """
    mean = moments[0]
    names = [
        name for name in ("moving_mean", "moving_variance", "skipped_updates") if name in state
    ]
    old = [state[name] for name in names]
    for one, dtype in zip(old, (mean.dtype, mean.dtype, torch.int32), strict=False):
        if one.dtype is not dtype or one.numel() != mean.numel() or not one.is_contiguous():
            return None
    new = [torch.empty_like(one) for one in old]
    given, made = ([*map(Tensor.data_ptr, some), None][:3] for some in (old, new))
    pointers = (*map(Tensor.data_ptr, moments), momentum, unbiased, propagate, *given, *made)
    code = call.CODES[mean.dtype]
    check(call.kernels, call.kernels.bn_remember(code, *mean.shape, *pointers))
    result = dict(zip(names, new, strict=True))
    if "num_updates" in state:
        result["num_updates"] = state["num_updates"] + 1
    return result


def _fake_moments(x: Tensor, sizes: Sequence[int], weights: Tensor | None) -> tuple[Tensor, ...]:
    _, g, _, c, _ = sizes
    return tuple(x.new_empty((g, n), dtype=statistics_type(x)) for n in (c, c, c, 1))


def _fake_standardize(x: Tensor, sizes: Sequence[int], *_: Any) -> Tensor:
    return like(arranged(x, sizes)[0], x)


def _fake_forward(
    x: Tensor, sizes: Sequence[int], weights: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    return _fake_standardize(x, sizes), *_fake_moments(x, sizes, weights)


def _fake_backward(
    x: Tensor, sizes: Sequence[int], dy: Tensor, weights: Tensor | None, *vectors: Any
) -> tuple[Tensor, ...]:
    mean, _, _, _, scale, offset, *_ = vectors
    return _fake_standardize(x, sizes), *_sums(mean, scale, offset)


def _fake_backward_sums(
    x: Tensor, sizes: Sequence[int], dy: Tensor, weights: Tensor | None, *vectors: Any
) -> tuple[Tensor, ...]:
    mean, _, _, scale, offset, *_ = vectors
    return _sums(mean, scale, offset)


def one_by_one(operator: Any) -> Any:
    """A vmap rule: the operator on each slice."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        slices = [
            operator(
                *(
                    value.select(dim, i) if isinstance(dim, int) else value
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
    return any(call.kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
