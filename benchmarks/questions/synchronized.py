"""What `synchronized` costs where there is one replica, over our plain one."""

from __future__ import annotations

from benchmarks import ours
from benchmarks.cases import Case, Settings, middle_sizes
from benchmarks.frameworks import engine
from benchmarks.timing import Contest


def cases(settings: Settings) -> list[Case]:
    """Middle-sized tensors, where the messages of many replicas are small beside the arithmetic."""
    return [
        Case("forward + backward", size.of(dtype), dtype, layout)
        for dtype in settings.dtypes
        for size in middle_sizes(settings)
        for layout in size.layouts(settings.layouts)
    ]


def contest(case: Case, settings: Settings) -> Contest:
    """In JAX the one replica is an axis of one device, with all that many would do."""
    use = engine(settings.framework)
    given = use.given(case)
    return Contest(
        {"ours": use.forward_backward(use.one_replica(given), given)},
        units={"ours, plain": use.forward_backward(ours.plain(given), given)},
        rounds=5,  # both run the same kernels: they differ by less than a few minima scatter
    )
