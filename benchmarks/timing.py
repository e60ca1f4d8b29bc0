"""How a case is timed: contenders take turns, each is called twice, the second call counts.

The first call wakes the contender's threads and pushes the previous one's data out of the caches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

Call = Callable[[], Any]
Clock = Callable[[], float]  # runs its contender, returns the seconds of one call

SHORT = 200e-6  # seconds; shorter calls are timed several at once
ENOUGH_ROUNDS = 5
TOO_LONG = 6  # times as long as a case may take, even one round is enough


class Times(NamedTuple):
    """Milliseconds of a call."""

    minimum: float
    median: float


class Contest(NamedTuple):
    """Who takes turns: each of ours is compared with each peer and each unit.

    Attributes:
        peers: Whom ours competes with: the ratio is theirs over ours.
        units: What ours is measured in: the ratio is ours over the unit.
        before: What of ours was timed already, for it happens once.
        rounds, longer: How many times as many rounds as elsewhere, and how many times as long.
    """

    ours: Mapping[str, Call]
    peers: Mapping[str, Call] = {}
    units: Mapping[str, Call] = {}
    before: Mapping[str, Times] = {}
    rounds: int = 1
    longer: float = 1.0


def clock(call: Call) -> Clock:
    """Times a call. What it returns is dropped inside the measured time, as a user's is."""
    for _ in range(2):  # compiles, then tells how long it takes
        started = perf_counter()
        call()
        taken = perf_counter() - started
    times = range(min(max(int(SHORT / max(taken, 1e-7)), 1), 200))

    def measure() -> float:
        call()
        started = perf_counter()
        for _ in times:
            call()
        return (perf_counter() - started) / len(times)

    return measure


def alternate(clocks: Mapping[str, Clock], repeats: int, seconds: float) -> dict[str, Times]:
    """Times of every contender, from rounds that go forward and backward through them."""
    order = list(clocks)
    samples: dict[str, list[float]] = {name: [] for name in order}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    started = perf_counter()
    try:
        for done in range(repeats):
            taken = perf_counter() - started
            if done >= ENOUGH_ROUNDS and taken > seconds:
                break
            if done and taken > TOO_LONG * seconds:
                break
            for name in order:
                samples[name].append(clocks[name]())
            order.reverse()
    finally:
        if was_enabled:
            gc.enable()
    return {name: Times(1e3 * min(some), 1e3 * median(some)) for name, some in samples.items()}
