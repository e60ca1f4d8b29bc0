"""PyTorch's array operations under the names that the core asks for; see `batchnorm.backends`."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from batchnorm.backends.torch.watchers import PLAIN, traced, transformed

where = torch.where
log = torch.log
expm1 = torch.expm1
sqrt = torch.sqrt
rsqrt = torch.rsqrt
equal = torch.eq
all = torch.all
ones_like = torch.ones_like
zeros_like = torch.zeros_like
transpose = torch.permute
concatenate = torch.cat
relu = torch.relu


def isfinite(x: torch.Tensor) -> torch.Tensor:
    return torch.eq(x - x, 0)  # torch's own is four operations


def fill(x: torch.Tensor, condition: torch.Tensor, value: float) -> torch.Tensor:
    """x with this value where the condition holds."""
    if value != 0 or _watched(x, condition) or x.is_neg() or not _vectorized(x, condition):
        return x.masked_fill(condition, value)
    bits = _BITS[x.dtype]
    kept = condition.to(bits).sub_(1)  # all bits where x stays, none where it becomes 0
    return torch.bitwise_and(x.view(bits), kept).view(x.dtype)


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
LARGE = 32768  # numbers


def _vectorized(x: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether more operations, in vector instructions, are faster than one that has none.

    On the CPU `masked_fill`, and `addcmul` of one tensor and two vectors, take 5 to 15 times as
    long as arithmetic (torch 2.13), which matters once they take longer than a call.
    """
    size = x.numel()
    large = x.is_cpu and x.dtype in _BITS and size >= LARGE
    return large and builtins.all(one.numel() < size for one in others)


def left_out(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | None:
    """Where a value is not finite and its weight is 0; None where it is known that none is."""
    if x.is_cpu and not _watched(x) and math.isfinite(torch.sum(x)):
        return None
    return torch.eq(weights, 0) & ~isfinite(x)


def stop_where(condition: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y, constant where the condition holds."""
    if not _watched(y):  # then nobody differentiates it
        return y
    return torch.where(condition, y.detach(), y)


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
    return x if sizes_of(x) == tuple(shape) else x.reshape(shape)


def broadcast_to(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if sizes_of(x) == tuple(shape) else torch.broadcast_to(x, shape)


def row(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """x as `[R, C]`; `(C,)` broadcasts like `[1, C]` as it stands, and has no reshape to undo."""
    return x if x.dim() == 1 and shape[0] == 1 else reshape(x, shape)


def per_channel(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    """x as the kernels take it: as many elements as `shape`, contiguous."""
    own = sizes_of(x)
    full = own == tuple(shape) or (shape[0] == 1 and own == (shape[1],))
    return (x if full else x.expand(shape)).contiguous()


def sizes_of(x: torch.Tensor) -> tuple[Any, ...]:
    """x's sizes, as integers also where `torch.jit.trace` would hand out tensors.

    (torch 2.13: reading these as integers warns, and would be right about sizes that vary.)
    """
    state = torch._C._get_tracing_state()
    if state is None:
        return x.shape
    torch._C._set_tracing_state(None)
    try:
        return x.shape
    finally:
        torch._C._set_tracing_state(state)


shape = runtime_shape = sizes_of


def full(shape: Sequence[Any], value: Any, dtype: str, like: torch.Tensor) -> torch.Tensor:
    return torch.full(shape, value, dtype=getattr(torch, dtype), device=like.device)


def maximum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, min=y)


def minimum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, max=y)


def stop_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


def sum(x: torch.Tensor, axes: Any) -> torch.Tensor:
    # over no dimensions at all torch adds up everything; x itself might be overwritten
    return x.clone() if axes == () else torch.sum(x, axes, keepdim=True)


long_sum = sum  # torch adds in cascades


def mean(x: torch.Tensor, axes: Any) -> torch.Tensor:
    """The average over these axes; 0 of no values."""
    return torch.mean(x, axes, keepdim=True) if axes != () and x.numel() else sum(x, axes)


def near(x: torch.Tensor, axes: Any) -> torch.Tensor:
    """Something near the mean over these axes that takes no sum: a value of each channel."""
    first = x[tuple(slice(1) if i in axes else slice(None) for i in range(x.dim()))]
    return first if x.numel() else sum(first, axes)


def subtract(
    x: torch.Tensor, y: torch.Tensor, times: float = 1.0, into: torch.Tensor | None = None
) -> torch.Tensor:
    """x - times * y; `into`, here and below, is memory that the result may overwrite."""
    return torch.sub(x, y, alpha=times, out=_room(into, x.dtype, x, y))


def add_product(
    x: torch.Tensor,
    y: torch.Tensor,
    z: torch.Tensor,
    times: float = 1.0,
    dtype: str | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """x + times * y * z, in this type."""
    wanted = y.dtype if dtype is None else getattr(torch, dtype)
    room = _room(into, wanted, y, x, z)
    given = room is not None and room is into
    if given and times == 1 and _vectorized(y, x, z):
        return torch.mul(y, z, out=room).add_(x)
    result = torch.addcmul(x, y, z, value=times, out=room)
    return result if dtype is None else cast(result, dtype)


def product(
    x: torch.Tensor, y: torch.Tensor, dtype: str, into: torch.Tensor | None = None
) -> torch.Tensor:
    """x * y, in this type."""
    return cast(torch.mul(x, y, out=_room(into, getattr(torch, dtype), x, y)), dtype)


def _room(
    into: torch.Tensor | None, wanted: torch.dtype, x: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor | None:
    """Where a result of this type and of x's shape goes; None where PyTorch finds the room.

    That is `into`, or room of its own for another type than x's, so that it is rounded as it is
    written. New memory of some megabytes takes longer than arithmetic on it: its pages are cleared.
    """
    if into is not None and into.dtype is wanted:
        return None if _watched(x, *others, into) else into
    if x.dtype is wanted or _watched(x, *others):
        return None
    return torch.empty_like(x, dtype=wanted)


def _watched(*operands: torch.Tensor) -> bool:
    """Whether someone has no rule for results in given memory, or keeps what was there before."""
    if transformed() or traced(operands[0]):
        return True
    attached = torch.is_grad_enabled()
    for one in operands:
        if type(one) not in PLAIN or (attached and one.requires_grad):
            return True
        if torch._C._functorch.is_legacy_batchedtensor(one):
            return True
    return False


def products(x: torch.Tensor) -> torch.Tensor:
    """Of each row and all behind it."""
    return torch.cumprod(x.flip(0), 0).flip(0)


def indices(x: torch.Tensor) -> torch.Tensor:
    """The numbers of x's rows, `[G, 1]`."""
    return torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None]


def pin(x: torch.Tensor) -> torch.Tensor:
    return x


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the compiled program will know it."""
    return None if torch.compiler.is_compiling() and is_tensor(value) else value.item()


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error (RuntimeError where compiled)."""
    if torch.compiler.is_compiling():
        # Inductor (torch 2.13) pastes the message into a C++ string literal as it stands
        torch._assert_async(condition, message.replace('"', "'"))
    elif not condition:
        raise error(message)
    return value


def cond(predicate: torch.Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """What `yes` or `no` returns. Only a compiled program meets this: it computes both.

    (torch 2.13: `torch.cond` has no derivative under `fullgraph`, and takes no closures.)
    """
    return torch.utils._pytree.tree_map(
        lambda one, other: one if one is other else torch.where(predicate, one, other), yes(), no()
    )
