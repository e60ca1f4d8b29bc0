"""Handwritten digits on several processes of PyTorch, one batch-norm batch over all of them.

    torchrun --standalone --nproc-per-node 2 examples/torch_digits.py
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        examples/torch_digits.py                      # on each of two machines

Without torchrun it is one process. `--out model.pt` keeps the model, whole or not at all.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

import batchnorm.torch

TEST = 297  # digits that are kept for testing


def network() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for width in (64, 64, 64):
        norm = batchnorm.torch.BatchNorm1d(64, activation="relu", synchronized=True)
        layers += [torch.nn.Linear(width, 64, bias=False), norm]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))


def train(epochs: int, batch: int, rank: int, replicas: int) -> tuple[torch.nn.Module, float]:
    """The trained network, and the share of test digits that it knows.

    The batch is that of all processes together; the last one of an epoch is smaller, and need not
    be divisible.
    """
    images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images = images.float()  # 0 to 16, as they are: normalizing is what the layers are for
    torch.manual_seed(0)
    model = network()
    replica = DistributedDataParallel(model) if replicas > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(epochs):
        order = torch.randperm(len(images) - TEST)  # the same on all processes
        for whole in order.split(batch):
            mine = whole.tensor_split(replicas)[rank]
            y = replica(images[mine])
            loss = torch.nn.functional.cross_entropy(y, labels[mine], reduction="sum")
            optimizer.zero_grad()
            (loss * replicas / len(whole)).backward()  # DDP averages over processes
            optimizer.step()
    model.eval()
    with torch.no_grad():
        known = model(images[-TEST:]).argmax(1) == labels[-TEST:]
    return model, known.float().mean().item()


def save(model: torch.nn.Module, path: Path) -> None:
    """Under another name first: a process that dies here leaves no half-written file."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(model.state_dict(), unfinished)
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, replicas = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model, accuracy = train(arguments.epochs, arguments.batch, rank, replicas)
    if rank == 0:
        if arguments.out:
            save(model, arguments.out)
        print(f"{replicas} replicas, test accuracy {accuracy:.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
