"""The kernels as PyTorch operators, without derivatives: `torch.ops.batchnorm`.

Every operator takes x as the view `[A, G, B, C, D]`, weights as `[A, G or 1, B, 1, D]` with any
size 1 instead, and per-channel vectors of shape `[G, C]` in the statistics' type, count `[G, 1]`.

Importing this module defines the operators; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm._native import torch_call
from batchnorm._native.torch_call import Call, statistics_type

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


def _moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    call = Call(x, weights)
    outputs = call.fresh_moments()
    call.run("bn_moments", *(one.data_ptr() for one in outputs))
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
    call = Call(x, weights)
    y = call.fresh()
    call.run(
        "bn_standardize",
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        y.data_ptr(),
    )
    return y


def _forward(
    x: Tensor,
    weights: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, ...]:
    call = Call(x, weights)
    y, moments = call.fresh(), call.fresh_moments()
    call.run(
        "bn_forward",
        epsilon,
        call.vector(scale),
        call.vector(offset),
        activation,
        *(one.data_ptr() for one in (*moments, y)),
    )
    return y, *moments


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
    call = Call(x, weights, dy)
    dx, sum_dy, sum_dy_xh = call.fresh(), torch.empty_like(mean), torch.empty_like(mean)
    call.run(
        "bn_backward",
        call.count(count),
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        call.vector(live),
        frozen,
        *(one.data_ptr() for one in (sum_dy, sum_dy_xh, dx)),
    )
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
    call = Call(x, weights, dy)
    sum_dy, sum_dy_xh = torch.empty_like(mean), torch.empty_like(mean)
    call.run(
        "bn_backward_sums",
        *call.standardizing(mean, remainder, variance, epsilon, scale, offset, activation),
        sum_dy.data_ptr(),
        sum_dy_xh.data_ptr(),
    )
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
    call = Call(x, weights, dy)
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


def _fake_vectors(x: Tensor, *columns: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty((x.shape[1], c), dtype=statistics_type(x)) for c in columns)


def _fake_moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    c = x.shape[3]
    return _fake_vectors(x, c, c, c, 1)


def _fake_standardize(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_forward(x: Tensor, weights: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_moments(x, weights)


def _fake_backward(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_fake_backward_sums(x)


def _fake_backward_sums(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _fake_vectors(x, x.shape[3], x.shape[3])


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
    return any(torch_call.kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
