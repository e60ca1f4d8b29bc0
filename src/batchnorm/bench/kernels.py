"""Question 1: the kernels by themselves, outputs given, over a copy of the same tensor."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from batchnorm._native.library import DTYPES, check, load
from batchnorm.bench.copies import Copier
from batchnorm.bench.plan import Case, Settings, Size
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import Times, alternate, clock

WHATS = ("forward", "backward", "inference")
READING = "reading two tensors"
SWEEPS = "memory, two sweeps"
EPSILON = 1e-3


def cases(settings: Settings) -> list[Case]:
    """One case for each tensor: its three kernels and the copies take turns."""
    return [
        Case("kernels", size.of(dtype), dtype, layout)
        for dtype in settings.dtypes
        for size in settings.all_sizes()
        for layout in size.layouts(settings.layouts)
    ]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """Each kernel over the fastest copy, which the row names, and below it what memory allows."""
    library = load()
    tensors = Tensors(case)
    contenders = {what: clock(call) for what, call in calls(library, case, tensors).items()}
    with Copier(library.bn_get_threads()) as copier:
        x, y, twin = (tensor.ctypes.data for tensor in (tensors.x, tensors.y, tensors.twin))
        copies = copier.clocks(y, x, tensors.x.nbytes)
        reading = {READING: copier.reading(x, twin, tensors.x.nbytes)}
        times = alternate({**copies, **reading, **contenders}, settings.repeats, settings.seconds)
    best = min(copies, key=lambda name: times[name].minimum)
    limits = sweeps(times[best], times[READING])
    for what in WHATS:
        for name, one in (("ours", times[what]), (SWEEPS, limits.get(what))):
            if one is not None:
                yield compare(
                    settings, case, {name: one, best: times[best]}, name, best,
                    ours_over_peer=True, outputs="given", what=what,
                )  # fmt: skip


def sweeps(copy: Times, reading: Times) -> dict[str, Times]:
    """What two sweeps over a tensor that no cache holds cost at the speed of memory.

    Forward: read x; read x and write y. Backward: read x and dy; read them and write dx. Channels
    first may be faster: a channel that fits the cache is read from memory once.
    """
    return {
        "forward": Times(*(c + r / 2 for c, r in zip(copy, reading, strict=True))),
        "backward": Times(*(c + 1.5 * r for c, r in zip(copy, reading, strict=True))),
    }


class Tensors:
    """Arguments of the kernels, every page touched."""

    def __init__(self, case: Case) -> None:
        size = case.size
        count = size.n * size.c * size.per_channel
        generator = np.random.default_rng(1)
        self.x = filled(generator, count, case.dtype)
        self.dy = filled(generator, count, case.dtype)
        self.y, self.dx, self.twin = (aligned(self.x) for _ in range(3))
        names = ("mean", "remainder", "variance", "scale", "offset", "sum_dy", "sum_dy_xh")
        self.vectors = {name: np.ones(size.c, np.float32) for name in names}
        self.count = np.ones(1, np.float32)
        self.dims = dimensions(size, case.layout)


def dimensions(size: Size, layout: str) -> Any:
    """The view [A, G, B, C, D] of a tensor."""
    rows = size.n * size.per_channel
    dims = (
        (size.n, 1, 1, size.c, size.per_channel) if layout == "first" else (1, 1, rows, size.c, 1)
    )
    return (ctypes.c_int64 * 5)(*dims)


def filled(generator: np.random.Generator, count: int, dtype: str) -> np.ndarray:
    """Normal values; bfloat16 as its bits."""
    values = generator.standard_normal(count, np.float32)
    if dtype == "bfloat16":
        return aligned((values.view(np.uint32) >> 16).astype(np.uint16))
    return aligned(values)


def aligned(values: np.ndarray) -> np.ndarray:
    """A copy on a cache line's border, where the frameworks put their tensors too."""
    memory = np.empty(values.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + values.nbytes].view(values.dtype)
    copy[:] = values
    return copy


def calls(library: Any, case: Case, tensors: Tensors) -> dict[str, Callable[[], None]]:
    """The kernels as calls without arguments; forward ran once, so the moments are there."""
    dtype, dims, v = DTYPES[case.dtype], tensors.dims, _Pointers(tensors)
    forward = functools.partial(
        _checked, library, library.bn_forward, dtype, dims, v.x, None, None, EPSILON,
        v.scale, v.offset, 0, v.mean, v.remainder, v.variance, v.count, v.y,
    )  # fmt: skip
    inference = functools.partial(
        _checked, library, library.bn_standardize, dtype, dims, v.x, None, None,
        v.mean, v.remainder, v.variance, EPSILON, v.scale, v.offset, 0, v.y,
    )  # fmt: skip
    backward = functools.partial(
        _checked, library, library.bn_backward, dtype, dims, v.x, v.dy, None, None, v.count,
        v.mean, v.remainder, v.variance, EPSILON, v.scale, v.offset, 0, None, 0,
        v.sum_dy, v.sum_dy_xh, v.dx,
    )  # fmt: skip
    forward()
    return {"forward": forward, "backward": backward, "inference": inference}


class _Pointers:
    """Addresses of all arrays, by name."""

    def __init__(self, tensors: Tensors) -> None:
        self.owner = tensors
        arrays = {name: getattr(tensors, name) for name in ("x", "dy", "y", "dx", "count")}
        self.addresses = {
            name: array.ctypes.data for name, array in {**arrays, **tensors.vectors}.items()
        }

    def __getattr__(self, name: str) -> int:
        return self.addresses[name]


def _checked(library: Any, function: Any, *arguments: Any) -> None:
    check(library, function(*arguments))
