"""The kernels by themselves, outputs given, over a copy of the same tensor.

`kernels/test/bench.cc` has the loop; it is built here, from the sources that the wheel is built of.
"""

from __future__ import annotations

import csv
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import Case, Settings
from benchmarks.rows import Row, compare
from benchmarks.timing import Times

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "benchmarks"
COPIES = ("copy, ordinary", "copy, shares", "copy, non-temporal")
READING = "reading two tensors"
SWEEPS = "memory, two sweeps"
# glibc then goes around the caches for every share of a thread above 1 MB, not 24 MB.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x100000"}


def cases(settings: Settings) -> list[Case]:
    """One case for each tensor: its kernels and the copies take turns."""
    return [
        Case("", size.of(dtype), dtype, layout)
        for dtype in settings.dtypes
        for size in settings.all_sizes()
        for layout in size.layouts(settings.layouts)
    ]


def rows(case: Case, settings: Settings) -> Iterator[Row]:
    """Each kernel over the fastest copy, which the row names, and below it what memory allows."""
    times = measured(case, settings)
    best = min((name for name in COPIES if name in times), key=lambda name: times[name].minimum)
    limits = sweeps(times[best], times[READING])
    for name, taken in times.items():
        if name in COPIES or name == READING:
            continue
        what, _, variant = name.partition(", ")
        of = Case(what, case.size, case.dtype, case.layout, variant or "plain")
        contenders = {"ours": taken}
        if not variant and what in limits:
            contenders[SWEEPS] = limits[what]
        for ours, time in contenders.items():
            given = {ours: time, best: times[best]}
            yield compare(settings, of, given, ours, best, over=True, outputs="given")


def measured(case: Case, settings: Settings) -> dict[str, Times]:
    """What the program says of one tensor, by contender."""
    size = case.size
    given = (settings.repeats, settings.seconds, 0, case.dtype, case.layout)
    command = [program(), *map(str, (*given, size.n, size.c, size.per_channel))]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    return {
        line["contender"]: Times(float(line["minimum_ms"]), float(line["median_ms"]))
        for line in csv.DictReader(done.stdout.splitlines())
    }


@functools.cache
def program() -> str:
    """Where the program is, built anew where its sources changed.

    Raises:
        RuntimeError: there is no compiler, or it refused.
    """
    for command in (
        ["cmake", "-S", str(ROOT / "kernels"), "-B", str(BUILD)],
        ["cmake", "--build", str(BUILD), "--target", "bench", "-j", "2"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise RuntimeError(f"kernels/test/bench.cc was not built: {error}") from error
        if done.returncode:
            raise RuntimeError(f"kernels/test/bench.cc was not built: {done.stderr.strip()}")
    return str(BUILD / "bench")


def sweeps(copy: Times, reading: Times) -> dict[str, Times]:
    """What two sweeps over a tensor that no cache holds cost at the speed of memory.

    Forward: read x; read x and write y. Backward: read x and dy; read them and write dx. Channels
    first may be faster: a channel that fits the cache is read from memory once.
    """
    return {
        "forward": Times(*(c + r / 2 for c, r in zip(copy, reading, strict=True))),
        "backward": Times(*(c + 1.5 * r for c, r in zip(copy, reading, strict=True))),
    }
