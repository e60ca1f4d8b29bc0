"""One layer in numbers: a row of `inspect`'s report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.tools.profile import Profile


@dataclass(frozen=True)
class Row:
    """One layer in numbers.

    Attributes:
        kind: the layer's class.
        values: fewest values per channel (and ghost batch) that a batch gave.
        mean_distance: |mean of the data - moving mean| in standard deviations, root mean square
            over channels; `worst_channel` is the worst one.
        log_variance_ratio: log(variance of the data / moving variance), root mean square.
        misfit: above 1, the two are farther apart than chance explains.
        between: share of the variance between batches.
        drift: how far outputs in training and evaluation are apart, in standard deviations.
        poisoned, collapsed, dead, saturated: channels.
        updates, needed: updates seen (None: nothing counted them), and what momentum asks for.
        frozen: why training leaves the statistics alone, or None.
        path, why_not: what runs, and why not the fused kernels.
    """

    layer: str
    kind: str
    channels: int
    values: float
    mean_distance: float
    log_variance_ratio: float
    worst_channel: int
    misfit: float
    between: float
    drift: float
    poisoned: int
    collapsed: int
    dead: int
    saturated: int
    updates: int | None
    needed: int | None
    momentum: float | None
    frozen: str | None
    path: str
    why_not: str | None


def row_of(profile: Profile) -> Row:
    """The row of a layer that was measured."""
    norm = profile.norm
    path, why_not = norm.path()
    held = norm.frozen()

    seen = profile.seen()

    def rms(values: Any) -> float:
        with np.errstate(all="ignore"):
            return float(np.sqrt(np.mean(values[seen] ** 2))) if seen.any() else math.nan

    return Row(
        layer=norm.name,
        kind=type(norm.layer).__name__,
        channels=len(profile.mean),
        values=min(profile.values),
        mean_distance=rms(profile.distance()),
        log_variance_ratio=rms(profile.log_ratio()),
        worst_channel=profile.worst()[0],
        misfit=profile.misfit(),
        between=profile.between(),
        drift=profile.drift,
        poisoned=int(profile.poisoned.sum()),
        collapsed=int(profile.collapsed().sum()),
        dead=int(profile.dead().sum()),
        saturated=int(profile.saturated().sum()),
        updates=profile.updates(),
        needed=profile.needed(),
        momentum=norm.momentum,
        frozen=held and held.reason,
        path=path,
        why_not=why_not,
    )


def cells(row: Row) -> tuple[str, ...]:
    """The numbers of a row as words."""
    seen = "?" if row.updates is None else str(row.updates)
    needed = "" if row.needed is None else f" of {row.needed}"
    return (
        str(row.channels),
        f"{row.values:g}",
        f"{row.mean_distance:.2g}",
        f"{row.log_variance_ratio:.2g}",
        seen + needed,
        f"{row.drift:.2g}",
    )
