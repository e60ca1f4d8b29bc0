"""A process of `tests/backends/test_torch_ddp.py`: rank, replicas, folder, what to do.

`train` pickles {fact: gradients after a step of DistributedDataParallel}; `die` ends without a
word in the middle of a step, on the last rank.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import batchnorm
import launcher

ROWS = 8  # of all replicas together


class Norm(torch.nn.Module):
    """The function as a layer that remembers."""

    def __init__(self, channels: int, synchronized: bool) -> None:
        super().__init__()
        parameters, state = batchnorm.init(torch.zeros(1, channels))
        self.vectors = torch.nn.ParameterDict(parameters)
        self.synchronized = synchronized
        for name, value in state.items():
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = dict(self.named_buffers())
        y, new = batchnorm.batch_norm(
            x, dict(self.vectors), state, training=True, synchronized=self.synchronized
        )
        with torch.no_grad():
            for name, value in new.items():
                state[name].copy_(value)
        return y


class Network(torch.nn.Module):
    def __init__(self, synchronized: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(5, 6),
            Norm(6, synchronized),
            torch.nn.ReLU(),
            torch.nn.Linear(6, 4),
            Norm(4, synchronized),
        )
        self.unused = Norm(4, synchronized)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, 5, generator=generator) * 3 + 2 for _ in range(2)]


def loss_of(y: torch.Tensor, rank: int, replicas: int) -> torch.Tensor:
    """A loss whose sum over replicas is that of one process; DDP averages the gradients."""
    weights = torch.linspace(-1, 2, ROWS)[:, None].tensor_split(replicas)[rank]
    return replicas * (weights * y**2).sum()


def steps(rank: int, replicas: int) -> dict[str, Any]:
    """Gradients and state after: two forwards and one backward, and two backwards, one silent."""
    found = {}
    for fact in ("two forwards", "no_sync"):
        model: Any = Network(synchronized=replicas > 1)
        silent: Any = contextlib.nullcontext
        if replicas > 1:
            model = DistributedDataParallel(model, find_unused_parameters=True)
            silent = model.no_sync
        parts = [x.tensor_split(replicas)[rank] for x in batches()]
        if fact == "two forwards":
            # one call of DDP, as its bookkeeping of unused parameters wants it
            y = model(parts[0])
            inner = getattr(model, "module", model)
            (loss_of(y, rank, replicas) + loss_of(inner(parts[1]), rank, replicas)).backward()
        else:
            with silent():
                loss_of(model(parts[0]), rank, replicas).backward()
            loss_of(model(parts[1]), rank, replicas).backward()
        inner = getattr(model, "module", model)
        found[fact] = {
            **{f"d {name}": one.grad for name, one in inner.named_parameters()},
            **dict(inner.named_buffers()),
        }
    return found


def die(rank: int, replicas: int, folder: Path) -> None:
    """The last rank is gone before its backward pass; the others wait for its message."""
    model = Network(synchronized=True)
    x = batches()[0].tensor_split(replicas)[rank]
    y = model(x)
    if rank == replicas - 1:
        os._exit(7)
    loss_of(y, rank, replicas).backward()
    launcher.keep(folder, rank, "went on")


def main() -> None:
    rank, replicas, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=replicas,
        timeout=dt.timedelta(seconds=20),
    )
    if sys.argv[4] == "die":
        die(rank, replicas, folder)
    else:
        launcher.keep(folder, rank, steps(rank, replicas))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
