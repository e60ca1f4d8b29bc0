"""Whole calls through a framework, fresh outputs, against the framework's own."""

from __future__ import annotations

from benchmarks import ours
from benchmarks.cases import ODD, Case, Settings, size
from benchmarks.frameworks import engine
from benchmarks.timing import Contest

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


def contest(case: Case, settings: Settings) -> Contest:
    use = engine(settings.framework)
    given = use.given(case, native=True)
    training = case.what != "inference"
    timed = use.forward_backward if case.what == "forward + backward" else use.forward
    peers = use.peers(case, given, training)
    return Contest(
        {"ours": timed(ours.plain(given, training), given)},
        peers={name: timed(function, given) for name, function in peers.items()},
    )
