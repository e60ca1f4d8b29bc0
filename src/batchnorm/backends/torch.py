"""PyTorch. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from batchnorm._moments import Moments
from batchnorm.backends import composite, torch_operators, torch_replicas
from batchnorm.backends.fused import ACTIVATIONS, vectors
from batchnorm.backends.host import HELD
from batchnorm.backends.torch_operators import PLAIN, StandardizeOver, observed, operator
from batchnorm.backends.torch_replicas import Replicas

_ops = sys.modules[__name__]
UNAVAILABLE = torch_operators.UNAVAILABLE

where = torch.where
sqrt = torch.sqrt
add = torch.add
multiply = torch.mul
isfinite = torch.isfinite
equal = torch.eq
all = torch.all
ones_like = torch.ones_like
zeros_like = torch.zeros_like
transpose = torch.permute
concatenate = torch.cat
replicas = torch_replicas.replicas
aligned = torch_replicas.aligned
all_gather = torch_replicas.all_gather
sum_of_zeros = torch_replicas.sum_of_zeros


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def asarray(value: Any, like: torch.Tensor) -> torch.Tensor:
    if like.is_cpu and isinstance(value, (np.ndarray, np.generic)):
        return torch.from_numpy(np.asarray(value))  # a third of as_tensor's time
    return torch.as_tensor(value, device=like.device)


_NAMES = {
    one: str(one).removeprefix("torch.") for one in vars(torch).values() if type(one) is torch.dtype
}


def dtype(x: torch.Tensor) -> str:
    return _NAMES[x.dtype]


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    wanted = getattr(torch, dtype)
    return x if x.dtype is wanted else x.to(wanted)


def reshape(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def broadcast_to(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else torch.broadcast_to(x, shape)


row = reshape  # see `batchnorm.backends`
per_channel = broadcast_to


def shape(x: torch.Tensor) -> tuple[Any, ...]:
    return tuple(x.shape)


runtime_shape = shape


def full(shape: Sequence[Any], value: Any, dtype: str, like: torch.Tensor) -> torch.Tensor:
    return torch.full(shape, value, dtype=getattr(torch, dtype), device=like.device)


def maximum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, min=y)


def minimum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, max=y)


def stop_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


def sum(x: torch.Tensor, axes: Any) -> torch.Tensor:
    return torch.sum(x, axes, keepdim=True)


wide_sum = sum  # torch adds in cascades: float32 is close enough for a shift


def pin(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return cast(x, dtype)


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the compiled program will know it."""
    return None if torch.compiler.is_compiling() and is_tensor(value) else value.item()


def on_host(tensors: Sequence[torch.Tensor]) -> list[Any] | None:
    """The values as NumPy arrays, where that is free, else None. Not to be written."""
    if torch.compiler.is_compiling() or observed():
        return None
    arrays = []
    for one in tensors:
        if type(one) not in PLAIN or not one.is_cpu or dtype(one) not in HELD:
            return None
        arrays.append((one.detach() if one.requires_grad else one).numpy())
    return arrays


def remembered(
    state: Mapping[str, Any], moments: Moments, momentum: float, unbiased: bool, propagate: bool
) -> dict[str, Any] | None:
    """None: `on_host` takes no time here."""
    return None


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error (RuntimeError where compiled)."""
    if torch.compiler.is_compiling():
        # Inductor (torch 2.13) pastes the message into a C++ string literal as it stands
        torch._assert_async(condition, message.replace('"', "'"))
    elif not condition:
        raise error(message)
    return value


def recomputing() -> bool:
    """Whether a backward pass is running: then `torch.utils.checkpoint` is calling again.

    Its second call would update moving statistics twice (pytorch/pytorch#96136).
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def why_not(x: torch.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if UNAVAILABLE is None and x.device.type != "cpu":
        return f"The native kernels run on the CPU; the input is on {x.device}."
    if UNAVAILABLE is None and torch_operators.differentiates_forward():
        return "The native kernels have no forward-mode derivative."
    return UNAVAILABLE


def moments(x: torch.Tensor, weights: torch.Tensor | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    if not fused:
        return composite.moments(_ops, x, weights)
    return Moments(*operator("moments")(x.detach(), weights))


def standardize(
    x: torch.Tensor,
    moments: Moments,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    live: bool | torch.Tensor,
    activation: str | None,
    fused: bool,
    replicas: Replicas | None = None,
) -> torch.Tensor:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which.

    With `replicas`, the moments came from x on all of them.
    """
    if not fused:
        return composite.standardize(_ops, x, moments, scale, offset, epsilon, weights, activation)
    given = vectors(_ops, x, moments, scale, offset, live)
    operands = (
        x,
        weights,
        *(None if vector is None else vector.contiguous() for vector in given),
        epsilon,
        ACTIVATIONS[activation],
    )
    if replicas is not None and live is not False:
        return StandardizeOver.apply(replicas, *operands)
    return operator("standardize")(*operands, live is False)


def forward(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    activation: str | None,
    fused: bool,
) -> tuple[torch.Tensor, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    if not fused:
        measured = moments(x, weights, False)
        return standardize(
            x, measured, scale, offset, epsilon, weights, True, activation, False
        ), measured
    _, g, _, c, _ = x.shape
    scale, offset = (
        None if v is None else broadcast_to(v, (g, c)).contiguous() for v in (scale, offset)
    )
    y, *measured = operator("forward")(x, weights, scale, offset, epsilon, ACTIVATIONS[activation])
    return y, Moments(*measured)


def affine(
    u: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)
