"""PyTorch over several processes: `torch.distributed` with any process group.

Everything here is a collective: every process of the group calls it, in the same order. The
derivative of `standardize` calls one too, so every process that ran the layer must run backward
through it, as with `torch.nn.SyncBatchNorm`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

# So many collectives after one of a new shape, the processes compare shapes before each. By what
# they did so far, all know alike when to compare, whatever they are about to do.
COMPARED = 64


class Replicas(NamedTuple):
    """The processes to take statistics over; `owner` speaks in error messages.

    `groups`: how many rows messages have, of which a process fills the first; None: its own.
    """

    group: Any
    owner: str
    number: int
    groups: int | None = None

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x over the replicas, and of its derivatives."""
        return all_reduce(x, self)


def find_replicas(synchronized: Any, owner: str) -> Replicas | None:
    """The processes that `synchronized` names; None where that is this one alone.

    Args:
        synchronized: True for the default group (this process alone where there is none), a
            process group, or the name of one.

    Raises:
        RuntimeError: a group is named and there is none of that name.
        TypeError: it is something else.
    """
    there = dist.is_available() and dist.is_initialized()
    if synchronized is True and not there:
        return None
    if isinstance(synchronized, str):
        synchronized = _named(synchronized, there, owner)
    elif synchronized is True:
        synchronized = dist.group.WORLD
    elif not isinstance(synchronized, dist.ProcessGroup):
        raise TypeError(
            f"{owner}: synchronized must be True, False, a torch process group or the name of one; "
            f"got {synchronized!r}."
        )
    number = dist.get_world_size(synchronized)
    return Replicas(synchronized, owner, number) if number > 1 else None


def _named(name: str, there: bool, owner: str) -> Any:
    if not there:
        raise RuntimeError(
            f"{owner}: synchronized must be True or False without torch.distributed; got {name!r}. "
            "Call torch.distributed.init_process_group first."
        )
    try:
        return dist.distributed_c10d._resolve_process_group(name)
    except RuntimeError:
        raise RuntimeError(
            f"{owner}: synchronized must name a process group that this process belongs to; got "
            f"{name!r}. Its name is the attribute group_name."
        ) from None


def aligned(replicas: Replicas, means: torch.Tensor) -> Replicas:
    """The processes, and how many ghost batches the one with most has: a message of its own.

    Raises:
        ValueError: another process has other channels or types, or no ghost batches.
    """
    if torch.compiler.is_compiling():  # a graph has fixed sizes: the same on all processes
        return replicas
    groups, channels = means.shape
    own = _Facts(True, groups, channels, means.element_size())
    everyone = _agreed(own, means, replicas)
    return replicas._replace(groups=max(one.groups for one in everyone))


def all_gather(x: torch.Tensor, replicas: Replicas) -> torch.Tensor:
    """x of every process, `[processes, *x.shape]`, in the order of their ranks; no derivative.

    Behind the rows of a process that has fewer than another there are zeros.

    Raises:
        ValueError: x has another shape or type on another process.
    """
    if replicas.groups is None and not torch.compiler.is_compiling():
        _compare(x, replicas)
    x = _padded(x.detach(), replicas)
    return _gathered(x.reshape(-1), replicas).reshape(-1, *x.shape)


def _padded(x: torch.Tensor, replicas: Replicas) -> torch.Tensor:
    """x with as many rows as messages have."""
    if replicas.groups in (None, len(x)):
        return x
    return torch.cat((x, x.new_zeros(replicas.groups - len(x), *x.shape[1:])))


def _gathered(x: torch.Tensor, replicas: Replicas) -> torch.Tensor:
    """The vectors x of all processes, one after the other."""
    # torch 2.13 deprecates the name that older versions have
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gathered = x.new_empty(replicas.number * x.numel())
    gather(gathered, x, group=replicas.group)
    return gathered


def all_reduce(x: torch.Tensor, replicas: Replicas) -> torch.Tensor:
    """The sum of x over the processes, row by row, and of its derivatives."""
    return _Sum.apply(_padded(x, replicas), replicas)[: len(x)]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, replicas: Replicas) -> torch.Tensor:
        ctx.replicas = replicas
        total = x.contiguous().clone()
        dist.all_reduce(total, group=replicas.group)
        return total

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        return _Sum.apply(dy, ctx.replicas), None


# Backends do not compare sizes: gloo aborts the process or returns another process's memory
# (torch 2.13), NCCL waits for its timeout.

_left: Counter[str] = Counter()  # comparisons to come, by group
_seen: set[tuple[Any, ...]] = set()


def _compare(x: torch.Tensor, replicas: Replicas) -> None:
    """Refuses, on every process, an x that is not the same everywhere but in value."""
    name = replicas.group.group_name
    known = (name, x.shape, x.dtype) in _seen
    if known and not _left[name]:
        return
    if not any(one[0] == name for one in _seen) or _left[name]:
        groups, columns = x.shape
        _agreed(_Facts(False, groups, (columns - 1) // 3, x.element_size()), x, replicas)
        _left[name] -= 1
    if not known:
        _seen.add((name, x.shape, x.dtype))
        _left[name] = COMPARED


class _Facts(NamedTuple):
    """What a process tells of the moments that it sends: ghost batches or not, and their sizes."""

    ghost: bool
    groups: int
    channels: int
    width: int


def _agreed(own: _Facts, like: torch.Tensor, replicas: Replicas) -> list[_Facts]:
    """What every process tells, by rank; where it does not fit together, all of them refuse it."""
    numbers = torch.tensor(own, dtype=torch.int64, device=like.device)
    everyone = [_Facts(*row) for row in _gathered(numbers, replicas).view(-1, len(own)).tolist()]
    grouped = [rank for rank, one in enumerate(everyone) if one.ghost]
    if 0 < len(grouped) < len(everyone):
        raise ValueError(
            f"{replicas.owner}: virtual_batch_size must be given on all replicas or on none; got "
            f"it on the ranks {grouped} only. Build the layer alike on all of them."
        )
    rules = (
        ("bytes in a statistic", "Give all of them inputs of one type.", _width),
        ("channels", "Check the model and the data of each.", _channels),
    )
    for what, remedy, of in rules:
        got = [of(one) for one in everyone]
        if len(set(got)) > 1:
            raise ValueError(
                f"{replicas.owner}: the input must have as many {what} on all replicas; got "
                f"{of(own)} here and {got} by rank. {remedy}"
            )
    return everyone


def _width(one: _Facts) -> int:
    return one.width


def _channels(one: _Facts) -> Any:
    """Of a group; without ghost batches, groups come from several axes, and must agree too."""
    if one.ghost or one.groups == 1:
        return one.channels
    return one.groups, one.channels
