"""What `inspect` returns: rows, diagnoses, a table, and files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchnorm.tools.diagnosis import SEVERITIES, Diagnosis
from batchnorm.tools.page import page
from batchnorm.tools.profile import Profile
from batchnorm.tools.result import Result, new_table
from batchnorm.tools.rows import Row, cells

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class Report(Result):
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

    def sentences(self) -> list[str]:
        """The alarms."""
        return [str(one) for one in self.alarms()] or ["No alarm: the statistics fit the data."]

    def to_dict(self) -> dict[str, Any]:
        return {"healthy": self.healthy} | super().to_dict()

    def table(self) -> Table:
        result = new_table(f"Batch normalization, {self.batches} batches")
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
            result.add_row(row.layer, *cells(row), f"[{style}]{words}[/]")
        return result

    def __rich__(self) -> Group:
        """Table and alarms."""
        from rich.console import Group
        from rich.text import Text

        return Group(self.table(), *(Text(f"- {one}") for one in self.sentences()))

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
            text = page(self.rows, self.diagnoses, self.profiles, self.batches)
            path.write_text(text, encoding="utf-8")
        else:
            raise ValueError(f"inspect: path must end in .html or .json; got '{path.name}'.")
        return path
