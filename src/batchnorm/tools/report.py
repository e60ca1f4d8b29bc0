"""What `inspect` returns: rows, diagnoses, a table, and files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from batchnorm.tools.diagnosis import SEVERITIES, Diagnosis
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
        updates, needed: updates seen (None: nothing counts them), and what momentum asks for.
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
        updates=norm.updates(),
        needed=profile.needed(),
        momentum=norm.momentum,
        frozen=norm.frozen(),
        path=path,
        why_not=why_not,
    )


@dataclass(frozen=True)
class Report:
    """What `inspect` found.

    Attributes:
        rows: one for each layer, in the order in which the model calls them.
        diagnoses: the gravest first, then in that order.
        batches: how many were read.
        profiles: the measurements channel by channel, for plots.
    """

    rows: tuple[Row, ...]
    diagnoses: tuple[Diagnosis, ...]
    batches: int
    profiles: tuple[Profile, ...] = field(repr=False, compare=False)

    def alarms(self, severity: str = "warning") -> list[Diagnosis]:
        """The diagnoses that are at least as grave as this."""
        worst = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return [one for one in self.diagnoses if one.severity in worst]

    @property
    def healthy(self) -> bool:
        """Whether there is no error and no warning."""
        return not self.alarms()

    def to_dict(self) -> dict[str, Any]:
        """Rows and diagnoses as plain values; numbers that are not finite are None."""
        return _plain(
            {
                "batches": self.batches,
                "healthy": self.healthy,
                "diagnoses": [asdict(one) for one in self.diagnoses],
                "rows": [asdict(one) for one in self.rows],
            }
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        result = Table(title=f"Batch normalization, {self.batches} batches", title_justify="left")
        result.add_column("layer", no_wrap=True)
        for name in ("channels", "values", "mean off", "log var off", "updates", "drift"):
            result.add_column(name, justify="right")
        result.add_column("verdict")
        for row in self.rows:
            causes = [one for one in self.diagnoses if one.layer == row.layer]
            style = {"error": "bold red", "warning": "yellow"}.get(
                causes[0].severity if causes else "", "dim"
            )
            words = ", ".join(dict.fromkeys(one.cause for one in causes)) or "fits"
            result.add_row(row.layer, *cells(row), Text(words, style=style))
        return result

    def __rich__(self) -> Group:
        """Table and diagnoses: `rich.print(report)`."""
        alarms = self.alarms()
        words = [Text(f"- {one}") for one in alarms] or [Text("No alarm: statistics fit the data.")]
        return Group(self.table(), *words)

    def save(self, path: str | Path) -> Path:
        """Writes the report: a page with plots (.html), or its numbers (.json); returns the path.

        Raises:
            ValueError: the name ends in neither.
            RuntimeError: a page is asked for without matplotlib.
        """
        path = Path(path)
        if path.suffix == ".json":
            path.write_text(self.to_json() + "\n")
        elif path.suffix == ".html":
            from batchnorm.tools.page import page

            path.write_text(page(self), encoding="utf-8")
        else:
            raise ValueError(f"inspect: path must end in .html or .json; got '{path.name}'.")
        return path


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
