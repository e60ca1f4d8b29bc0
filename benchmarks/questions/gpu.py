"""Kernels on an NVIDIA GPU: over a copy of the tensor, and against the framework's own."""

from __future__ import annotations

import torch

from benchmarks import ours, with_gpu
from benchmarks.cases import DTYPES, FULL, MIDDLE, Case, Settings, Size, size
from benchmarks.ours import Given
from benchmarks.questions.modes import with_mode
from benchmarks.timing import Contest
from benchmarks.with_gpu import clock as clock
from benchmarks.with_gpu import composite as composite
from benchmarks.with_gpu import device as device
from benchmarks.with_gpu import why_not as why_not

# 1, 6, 26, 51, 206 and 1028 MB in float32.
SIZES = (
    "20x64x14x14", "32x256x14x14", "32x64x56x56", "64x64x56x56", "256x64x56x56", "1280x64x56x56",
)  # fmt: skip
RESIDUAL = "BN + add + ReLU, forward + backward"
FROM_PYTHON = "forward + backward, from Python"
WHATS = ("forward", "backward", "inference", RESIDUAL)
SMALL = size("32x64")
LONGER = 0.1  # of the seconds that a case may take: the whole table is a matter of minutes


def cases(settings: Settings) -> list[Case]:
    """Every step of plain normalization at every size, every mode at the one of 51 MB; and a step
    of a small tensor as Python calls it."""
    chosen = [size(text) for text in SIZES] if settings.sizes == FULL else settings.all_sizes()
    dtypes = (*DTYPES, "float16") if settings.dtypes == DTYPES else settings.dtypes
    plain = [
        Case(what, one.of(dtype), dtype, layout)
        for what in WHATS
        for dtype in dtypes
        for one in chosen
        for layout in one.layouts(settings.layouts)
    ]
    modes = [
        Case("forward + backward", one.of(dtype), dtype, layout, mode)
        for mode in settings.modes
        for dtype in dtypes
        for one in _middle(chosen)
        if mode != "axes" or len(one.positions) > 1
        for layout in one.layouts(settings.layouts)
        if mode not in ("adjustment", "axes") or layout == "first"
    ]
    small = [Case(FROM_PYTHON, SMALL.of(dtype), dtype, "last") for dtype in dtypes[:1]]
    return small + plain + modes


def _middle(chosen: list[Size]) -> list[Size]:
    spatial = [one for one in chosen if one.positions]
    return [one for one in spatial if 40 < one.megabytes("float32") < MIDDLE[1]] or spatial[:1]


def contest(case: Case, settings: Settings) -> Contest:
    """Ours over a copy of the tensor; a mode over plain normalization."""
    if case.variant != "plain":
        given = with_gpu.given(case)
        changed, options = with_mode(with_gpu, case)
        step = with_gpu.forward_backward
        return Contest(
            {"ours": step(ours.plain(changed, **options), changed)},
            units={"ours, plain": step(ours.plain(given), given)},
            longer=LONGER,
        )
    given = with_gpu.given(case)
    if case.what == FROM_PYTHON:
        ours_and_torch = {"ours": ours.plain(given), "torch": with_gpu.own(given)}
        calls = {
            name: with_gpu.FromPython(with_gpu.forward_backward(function, given))
            for name, function in ours_and_torch.items()
        }
        return Contest({"ours": calls.pop("ours")}, calls, longer=LONGER)
    units = {"copy": with_gpu.copy(given)}
    training = case.what != "inference"
    mine = ours.plain(given, training)
    timed = with_gpu.backward if case.what == "backward" else with_gpu.forward
    if case.what == RESIDUAL:
        given = _with_residual(given)
        mine, timed = ours.plain(given, activation="relu"), with_gpu.forward_backward
    functions = with_gpu.peers(case, given, training)
    peers = {name: timed(function, given) for name, function in functions.items()}
    if case.what == "forward":
        cuts = with_gpu.cuts(case, given).items()
        peers |= {name: with_gpu.no_gradients(call) for name, call in cuts}
    return Contest({"ours": timed(mine, given)}, peers, units, longer=LONGER)


def _with_residual(given: Given) -> Given:
    return given._replace(extra={"residual": torch.flip(given.x.detach(), (0,))})
