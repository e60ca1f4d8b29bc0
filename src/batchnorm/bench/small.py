"""Question 5: what a call costs besides the arithmetic: forward on a small tensor."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.bench.engine import engine
from batchnorm.bench.plan import Case, Settings
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import alternate, clock

ROUNDS = 5  # times as many as elsewhere: a call takes microseconds


def cases(settings: Settings) -> list[Case]:
    """Dense inputs among the sizes, in float32."""
    return [
        Case("forward", size, "float32", "last")
        for size in settings.all_sizes()
        if not size.positions
    ]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """A row for the whole function, and one for the operator alone where the framework has it."""
    use = engine(settings.framework)
    calls, peer = use.small(case, use.given(case))
    clocks = {name: clock(call) for name, call in calls.items()}
    times = alternate(clocks, ROUNDS * settings.repeats, settings.seconds)
    for name in calls:
        if name != peer:
            yield compare(settings, case, times, name, peer, ours_over_peer=True)
