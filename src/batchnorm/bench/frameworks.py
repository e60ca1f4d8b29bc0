"""Question 2: whole calls through a framework, fresh outputs, against the framework's own."""

from __future__ import annotations

from collections.abc import Iterator

from batchnorm.bench import ours
from batchnorm.bench.engine import engine
from batchnorm.bench.plan import ODD, Case, Settings, size
from batchnorm.bench.row import Row, compare
from batchnorm.bench.timing import alternate, clock

WHATS = ("forward + backward", "forward", "inference")


def cases(settings: Settings) -> list[Case]:
    """Every tensor, three ways; on TensorFlow one whose channels no vector divides, besides."""
    odd = [size(ODD)] if settings.framework == "tensorflow" and not settings.quick else []
    return [
        Case(what, one.of(dtype), dtype, layout)
        for what in WHATS
        for dtype in settings.dtypes
        for one in (*settings.all_sizes(), *odd)
        for layout in one.layouts(settings.layouts)
    ]


def measure(case: Case, settings: Settings) -> Iterator[Row]:
    """A row for each peer."""
    use = engine(settings.framework)
    given = use.given(case, native=True)
    training = case.what != "inference"
    peers = use.peers(case, given, training)
    timed = use.forward_backward if case.what == "forward + backward" else use.forward
    functions = {"ours": ours.plain(given, training), **peers}
    clocks = {name: clock(timed(function, given)) for name, function in functions.items()}
    times = alternate(clocks, settings.repeats, settings.seconds)
    for peer in peers:
        yield compare(settings, case, times, "ours", peer)
