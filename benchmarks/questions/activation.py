"""BN + ReLU in one kernel, against ReLU as a step of its own."""

from __future__ import annotations

from benchmarks import ours
from benchmarks.cases import Case, Settings
from benchmarks.frameworks import engine
from benchmarks.timing import Contest

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


def contest(case: Case, settings: Settings) -> Contest:
    use = engine(settings.framework)
    given = use.given(case, native=True)
    one, two = ours.plain(given, activation="relu"), ours.then(ours.plain(given), use.relu)
    return Contest(
        {"ours, activation='relu'": use.forward_backward(one, given)},
        peers={"ours, then relu": use.forward_backward(two, given)},
    )
