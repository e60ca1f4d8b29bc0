"""A process of `tests/torch/test_processes.py`: rank, replicas, folder.

It pickles {fact: what two steps of training left on this rank}.
"""

from __future__ import annotations

import datetime as dt
import io
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import batchnorm
import batchnorm.torch
import launcher

ROWS = {1: (9,), 2: (6, 3), 4: (5, 2, 1, 1)}  # of each rank; one value per channel is enough
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "renorm": {"renorm": True, "renorm_momentum": 0.3},
    "relu": {"activation": "relu"},
    "composite": {"fused": False},
}


def network(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 6),
        batchnorm.torch.BatchNorm1d(6, **options),
        torch.nn.Linear(6, 4),
        batchnorm.torch.SyncBatchNorm(4, **options),
    )


def batch(seed: int) -> torch.Tensor:
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def train(model: Any, rank: int, replicas: int) -> dict[str, Any]:
    """y of this rank, gradients and state after two steps; DDP averages the gradients."""
    weights = torch.linspace(-1, 2, 9)[:, None]
    rows = ROWS[replicas]
    y = None
    for seed in range(2):
        x, w = (one.split(rows)[rank] for one in (batch(seed), weights))
        model.zero_grad()
        y = model(x)
        (replicas * (w * y**2).sum()).backward()
    inner = getattr(model, "module", model)
    return {
        "y": y.detach(),
        **{f"d {name}": one.grad for name, one in inner.named_parameters()},
        **dict(inner.named_buffers()),
    }


def wrapped(model: torch.nn.Module, replicas: int) -> Any:
    return DistributedDataParallel(model) if replicas > 1 else model


def modes(rank: int, replicas: int) -> dict[str, Any]:
    return {
        name: train(wrapped(network(synchronized=True, **options), replicas), rank, replicas)
        for name, options in MODES.items()
    }


def pickled(rank: int, replicas: int) -> dict[str, Any]:
    """A module that is synchronized over a group, through a file and a copy."""
    model = network(synchronized=dist.group.WORLD)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return train(wrapped(torch.load(file, weights_only=False), replicas), rank, replicas)


def switched(rank: int, replicas: int) -> dict[str, Any]:
    """A model of torch's own modules, converted and synchronized."""
    torch.manual_seed(0)
    kinds = torch.nn.BatchNorm1d(6), torch.nn.BatchNorm1d(4)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), kinds[0], torch.nn.Linear(6, 4), kinds[1])
    batchnorm.torch.convert(model)
    assert batchnorm.set_synchronized(model, True) == ["1", "3"]
    return train(wrapped(model, replicas), rank, replicas)


def sharded(rank: int, replicas: int) -> dict[str, Any]:
    """Parameters in shards: FSDP2."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = network(synchronized=True)
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (replicas,)))
    found = train(model, rank, replicas)
    return {
        name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in found.items()
    }


def main() -> None:
    rank, replicas, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=replicas,
        timeout=dt.timedelta(seconds=60),
    )
    facts = {function.__name__: function(rank, replicas) for function in (pickled, switched)}
    facts |= modes(rank, replicas)
    if replicas == 2:
        facts["sharded"] = sharded(rank, replicas)
    launcher.keep(folder, rank, facts)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
