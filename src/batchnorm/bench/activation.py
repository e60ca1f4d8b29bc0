"""Question 4: BN + ReLU in one kernel, against ReLU as a step of its own."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.bench import ours
from batchnorm.bench.engine import engine
from batchnorm.bench.plan import Case, Settings
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import alternate, clock

ONE, TWO = "ours, activation='relu'", "ours, then relu"
MEGABYTES = 20  # below, both are in the caches and what is measured is the call


def cases(settings: Settings) -> list[Case]:
    spatial = [one for one in settings.all_sizes() if one.positions]
    big = [one for one in spatial if one.megabytes("float32") > MEGABYTES]
    return [
        Case("forward + backward", size.of(dtype), dtype, layout)
        for dtype in settings.dtypes
        for size in big or spatial
        for layout in size.layouts(settings.layouts)
    ]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    use = engine(settings.framework)
    given = use.given(case, native=True)
    functions = {ONE: ours.with_relu(given), TWO: ours.then(ours.plain(given), use.relu)}
    clocks = {
        name: clock(use.forward_backward(function, given)) for name, function in functions.items()
    }
    times = alternate(clocks, settings.repeats, settings.seconds)
    yield compare(settings, case, times, ONE, TWO)
