"""PyTorch. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from batchnorm._moments import Moments
from batchnorm.backends import composite

_ops = sys.modules[__name__]

where = torch.where
sqrt = torch.sqrt
isfinite = torch.isfinite
all = torch.all
ones_like = torch.ones_like
zeros_like = torch.zeros_like
reshape = torch.reshape
transpose = torch.permute
broadcast_to = torch.broadcast_to


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def asarray(value: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, device=like.device)


def dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return x.to(getattr(torch, dtype))


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


def concrete_bool(value: Any) -> bool | torch.Tensor:
    if torch.compiler.is_compiling() and is_tensor(value):
        return value.to(torch.bool)
    return bool(value)


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error (RuntimeError where compiled)."""
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not condition:
        raise error(message)
    return value


def check_one_replica(owner: str) -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        replicas = distributed.get_world_size()
        if replicas > 1:
            raise RuntimeError(
                f"{owner}: synchronized must be False with more than one process in this version; "
                f"got True with {replicas} processes."
            )


def recomputing() -> bool:
    """Whether a backward pass is running: then `torch.utils.checkpoint` is calling again.

    Its second call would update moving statistics twice (pytorch/pytorch#96136).
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def moments(x: torch.Tensor, weights: torch.Tensor | None) -> Moments:
    """See `composite.moments`."""
    return composite.moments(_ops, x, weights)


def standardize(
    x: torch.Tensor,
    moments: Moments,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    live: bool | torch.Tensor,
) -> torch.Tensor:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which."""
    return composite.standardize(_ops, x, moments, scale, offset, epsilon, weights)


def affine(
    u: torch.Tensor, scale: torch.Tensor | None, offset: torch.Tensor | None
) -> torch.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset)
