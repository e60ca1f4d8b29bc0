"""A copy of a tensor by the C library, as fast as it goes: the unit that kernels are measured in.

Reading alone is measured too, as a comparison of two equal tensors: what no sweep can do without.

Ordinary stores read the line they write first; non-temporal ones do not, which is faster for
tensors that no cache holds and slower for the others. The C library decides by size. Where it can
be told the size (glibc on x86-64, in the environment of a new process) both copies are at hand:
pieces below the threshold, or one piece above it for each thread.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from time import perf_counter

from batchnorm.bench.timing import Clock

THRESHOLD = 1 << 20
TUNABLE = f"glibc.cpu.x86_non_temporal_threshold={THRESHOLD:#x}"
ENVIRONMENT = {"GLIBC_TUNABLES": TUNABLE}
_PIECE = THRESHOLD - 4096

Piece = tuple[int, int, int]  # two addresses and how many bytes


class Copier:
    """Copies on several threads that wait for work; use it as a context."""

    def __init__(self, threads: int) -> None:
        self.helpers = [_Helper() for _ in range(threads - 1)]
        self.told = TUNABLE in os.environ.get("GLIBC_TUNABLES", "")

    def __enter__(self) -> Copier:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self.helpers:
            helper.stop()

    def clocks(self, to: int, source: int, count: int) -> dict[str, Clock]:
        """Every way to copy `count` bytes between two addresses, by name."""
        ranges = self._ranges(count)
        pieces = [
            [(to + at, source + at, size) for at, size in _cut(start, size)]
            for start, size in ranges
        ]
        whole = [[(to + start, source + start, size)] for start, size in ranges]
        one = [[(to + at, source + at, size) for at, size in _cut(0, count)]]
        ways = {"copy, one thread": one}
        if len(ranges) > 1:
            ways["copy, ordinary"] = pieces
        if self.told and ranges[0][1] > THRESHOLD:
            ways["copy, non-temporal"] = whole
        return {name: self._clock(ctypes.memmove, work) for name, work in ways.items()}

    def reading(self, first: int, second: int, count: int) -> Clock:
        """Reads `count` bytes at two addresses, which must hold the same."""
        work = [[(first + at, second + at, size)] for at, size in self._ranges(count)]
        compare = ctypes.CDLL(None).memcmp
        compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        return self._clock(compare, work)

    def _ranges(self, count: int) -> list[tuple[int, int]]:
        """Where each thread begins, and how many bytes are its."""
        share = -(-count // (len(self.helpers) + 1)) + 4095 & ~4095
        return [(at, min(share, count - at)) for at in range(0, count, share)]

    def _clock(self, function: Callable[..., object], work: list[list[Piece]]) -> Clock:
        def measure() -> float:
            self._run(function, work)
            return self._run(function, work)

        return measure

    def _run(self, function: Callable[..., object], work: list[list[Piece]]) -> float:
        """Seconds of the slowest thread, by its own clock: handing out work is not counted."""
        busy = self.helpers[: len(work) - 1]
        for helper, pieces in zip(busy, work[1:], strict=True):
            helper.start(functools.partial(_timed, function, pieces))
        taken = _timed(function, work[0])
        return max(taken, *(helper.wait() for helper in busy), 0.0)


class _Helper:
    def __init__(self) -> None:
        self.begin, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.work: Callable[[], float] | None = None
        self.taken = 0.0
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def start(self, work: Callable[[], float] | None) -> None:
        self.work = work
        self.begin.release()

    def wait(self) -> float:
        self.done.acquire()
        return self.taken

    def stop(self) -> None:
        self.start(None)
        self.thread.join()

    def _work(self) -> None:
        while True:
            self.begin.acquire()
            if self.work is None:
                return
            self.taken = self.work()
            self.done.release()


def _cut(start: int, count: int) -> list[tuple[int, int]]:
    return [(at, min(_PIECE, start + count - at)) for at in range(start, start + count, _PIECE)]


def _timed(function: Callable[..., object], pieces: list[Piece]) -> float:
    started = perf_counter()
    for first, second, size in pieces:
        function(first, second, size)  # releases the interpreter's lock
    return perf_counter() - started
