"""What a call costs besides the arithmetic: forward, inference and a step on a small tensor.

Eager on PyTorch and TensorFlow, jitted on JAX. Where the framework has two forms, both take part.
The peers count no updates; ours may do without its two counters, which a row shows.
"""

from __future__ import annotations

from benchmarks import ours
from benchmarks.cases import Case, Settings
from benchmarks.frameworks import engine
from benchmarks.timing import Contest

WHATS = ("forward", "inference", "step")


def cases(settings: Settings) -> list[Case]:
    """Dense inputs among the sizes, in float32; a step is forward and backward."""
    return [
        Case(what, size, "float32", "last")
        for size in settings.all_sizes()
        if not size.positions
        for what in WHATS
    ]


def contest(case: Case, settings: Settings) -> Contest:
    use = engine(settings.framework)
    given = use.given(case)
    training = case.what != "inference"
    forward, step = use.SMALL
    timed = step if case.what == "step" else forward
    own = use.small_peers(given, training)
    averages = {name: one for name, one in given.state.items() if name.startswith("moving")}
    bare = given._replace(state=averages)
    return Contest(
        {
            "ours": timed(ours.plain(given, training), given),
            "ours, no counters": timed(ours.plain(bare, training), bare),
        },
        units={name: timed(function, given) for name, function in own.items()},
        rounds=5,  # a call takes microseconds
    )
