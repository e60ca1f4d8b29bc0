"""Modules of `batchnorm.torch` beside torch's own: what a small call costs, and a ResNet's block.

The block is y = relu(batch_norm(x) + shortcut), forward and backward: one call of ours, three of
torch's. Both modules count their updates, as users' modules do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import batchnorm.torch
from benchmarks import ours, with_torch
from benchmarks.cases import Case, Settings
from benchmarks.timing import Contest

WHATS = ("forward", "inference", "step")
MEGABYTES = 20  # below, all is in the caches


def cases(settings: Settings) -> list[Case]:
    """Small calls on dense inputs, blocks on the large spatial ones."""
    sizes = settings.all_sizes()
    small = [
        Case(what, size, "float32", "last", "call")
        for size in sizes
        if not size.positions
        for what in WHATS
    ]
    spatial = [one for one in sizes if len(one.positions) == 2]
    big = [one for one in spatial if one.megabytes("float32") > MEGABYTES]
    return small + [
        Case("forward + backward", size.of(dtype), dtype, layout, "block")
        for dtype in settings.dtypes
        for size in big or spatial
        for layout in settings.layouts
    ]


def contest(case: Case, settings: Settings) -> Contest:
    given = with_torch.given(case, native=True)
    if case.variant == "call":
        mine, theirs = (
            kind(case.size.c).train(case.what != "inference")
            for kind in (batchnorm.torch.BatchNorm1d, torch.nn.BatchNorm1d)
        )
        timed = _step if case.what == "step" else _forward
        return Contest(
            {"ours": timed(mine, given.x, given.dy, [])},
            units={"nn.BatchNorm1d": timed(theirs, given.x, given.dy, [])},
            rounds=5,  # a call takes microseconds
        )
    shortcut = torch.from_numpy(ours.arrays(case)[1]).to(given.x.dtype)
    if case.layout == "last":
        shortcut = shortcut.movedim(-1, 1)
    shortcut.requires_grad_()
    one = batchnorm.torch.BatchNorm2d(case.size.c, activation="relu")
    three = torch.nn.BatchNorm2d(case.size.c)

    def in_one(x: torch.Tensor) -> torch.Tensor:
        return one(x, residual=shortcut)

    def in_three(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(three(x) + shortcut)

    tensors = given.x, given.dy
    return Contest(
        {"ours": _step(in_one, *tensors, [shortcut, *one.parameters()])},
        peers={"torch, three": _step(in_three, *tensors, [shortcut, *three.parameters()])},
    )


def _forward(module: Any, x: torch.Tensor, *_: Any) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return module(x)

    return call


def _step(module: Any, x: torch.Tensor, dy: torch.Tensor, others: list[Any]) -> Callable[[], Any]:
    wanted = [x, *(others or module.parameters())]

    def call() -> Any:
        y = module(x)
        return y, torch.autograd.grad(y, wanted, dy)

    return call
