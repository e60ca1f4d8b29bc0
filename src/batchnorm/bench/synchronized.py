"""Question 7: what `synchronized` costs where there is one replica, over our plain one."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.bench import ours
from batchnorm.bench.engine import engine
from batchnorm.bench.plan import Case, Settings, middle_sizes
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import alternate, clock

# Both contenders run the same kernels: they differ by less than minima of a few rounds scatter.
TIMES_AS_MANY_ROUNDS = 5


def cases(settings: Settings) -> list[Case]:
    """Middle-sized tensors, where the messages of many replicas are small beside the arithmetic."""
    return [
        Case("forward + backward", size.of(dtype), dtype, layout)
        for dtype in settings.dtypes
        for size in middle_sizes(settings)
        for layout in size.layouts(settings.layouts)
    ]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """In JAX the one replica is an axis of one device, with all that many would do."""
    use = engine(settings.framework)
    given = use.given(case)
    functions = {"ours": use.one_replica(given), "ours, plain": ours.plain(given)}
    clocks = {
        name: clock(use.forward_backward(function, given)) for name, function in functions.items()
    }
    rounds = TIMES_AS_MANY_ROUNDS * settings.repeats
    times = alternate(clocks, rounds, settings.seconds)
    yield compare(settings, case, times, "ours", "ours, plain", ours_over_peer=True)
