"""PyTorch. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from batchnorm._moments import Moments
from batchnorm.backends import composite, torch_operators, torch_replicas
from batchnorm.backends.composite import Sizes
from batchnorm.backends.fused import ACTIVATIONS, vectors
from batchnorm.backends.host import HELD
from batchnorm.backends.torch_operators import PLAIN, StandardizeOver, observed, run
from batchnorm.backends.torch_replicas import Replicas

_ops = sys.modules[__name__]
UNAVAILABLE = torch_operators.UNAVAILABLE
if UNAVAILABLE is None:
    from batchnorm._native import torch as kernels

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


_HELD = {getattr(torch, name) for name in HELD}


def dtype(x: torch.Tensor) -> str:
    return _NAMES[x.dtype]


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    wanted = getattr(torch, dtype)
    return x if x.dtype is wanted else x.to(wanted)


def reshape(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def broadcast_to(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else torch.broadcast_to(x, shape)


def row(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """x as `[R, C]`; `(C,)` broadcasts like `[1, C]` as it stands, and has no reshape to undo."""
    return x if x.dim() == 1 and shape[0] == 1 else reshape(x, shape)


def per_channel(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """x as the kernels take it: as many elements as `shape`, contiguous."""
    rows, columns = shape
    return (x if x.numel() == rows * columns else x.expand(shape)).contiguous()


def shape(x: torch.Tensor) -> tuple[Any, ...]:
    return x.shape


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
    if not _at_hand(tensors):
        return None
    return [(one.detach() if one.requires_grad else one).numpy() for one in tensors]


def _at_hand(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether nobody looks on, and everything is plain memory of this machine."""
    if torch.compiler.is_compiling() or observed():
        return False
    for one in tensors:
        if type(one) not in PLAIN or one.dtype not in _HELD or not one.is_cpu or one.is_neg():
            return False
    return True


def known(mask: torch.Tensor) -> torch.Tensor:
    return mask


def remembered(
    state: Mapping[str, Any], moments: Moments, momentum: float, unbiased: bool, propagate: bool
) -> dict[str, Any] | None:
    """The plain moving averages after a step, by one kernel; None where it does not hold them."""
    if not _at_hand((*state.values(), *moments)):
        return None
    return kernels.remember(state, moments, momentum, unbiased, propagate)


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
    if UNAVAILABLE is not None:
        return UNAVAILABLE
    if not x.is_cpu:
        return f"The native kernels run on the CPU; the input is on {x.device}."
    if torch_operators.differentiates_forward():
        return "The native kernels have no forward-mode derivative."
    return None


def moments(x: torch.Tensor, sizes: Sizes, weights: torch.Tensor | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    if not fused:
        return composite.moments(_ops, x, sizes, weights)
    return Moments(*run("moments", x.detach(), sizes, weights))


def standardize(
    x: torch.Tensor,
    sizes: Sizes,
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
        return composite.standardize(
            _ops, x, sizes, moments, scale, offset, epsilon, weights, activation
        )
    given = vectors(_ops, sizes, moments, scale, offset, live)
    operands = (x, sizes, weights, *given, epsilon, ACTIVATIONS[activation])
    if replicas is not None and live is not False:
        return StandardizeOver.apply(replicas, *operands)
    return run("standardize", *operands, live is False)


def forward(
    x: torch.Tensor,
    sizes: Sizes,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    activation: str | None,
    fused: bool,
) -> tuple[torch.Tensor, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    if not fused:
        measured = moments(x, sizes, weights, False)
        return standardize(
            x, sizes, measured, scale, offset, epsilon, weights, True, activation, False
        ), measured
    _, g, _, c, _ = sizes
    scale, offset = (None if v is None else per_channel(v, (g, c)) for v in (scale, offset))
    how = (epsilon, ACTIVATIONS[activation])
    y, *measured = run("forward", x, sizes, weights, scale, offset, *how)
    return y, Moments(*measured)


def affine(
    u: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)
