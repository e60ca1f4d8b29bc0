"""What `fold` did, and what it would not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchnorm.tools.result import Result, new_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Refusal:
    """A layer that stayed, and why."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}"


@dataclass(frozen=True)
class Folding(Result):
    """What `fold` did: the attribute `folding` of the model that it returned.

    Attributes:
        folded: pairs (batch-normalization layer, the layer that took it in).
        refused: the layers that stayed.
        difference: the largest |output after - before| over the data, divided by the largest
            |output before|; None without data, NaN where only one of the two is NaN.
    """

    folded: tuple[tuple[str, str], ...]
    refused: tuple[Refusal, ...]
    difference: float | None

    def sentences(self) -> list[str]:
        return [
            *(f"{name}: folded into {into}." for name, into in self.folded),
            *(f"{one.layer}: kept, because {one.reason}." for one in self.refused),
            *([] if self.difference is None else [f"Outputs differ by {self.difference:.1e}."]),
        ]

    def table(self) -> Table:
        words = "" if self.difference is None else f"; outputs differ by {self.difference:.1e}"
        result = new_table(f"Folded {len(self.folded)}, kept {len(self.refused)}{words}")
        result.add_column("layer", no_wrap=True)
        result.add_column("into, or why not")
        for name, into in self.folded:
            result.add_row(name, into)
        for one in self.refused:
            result.add_row(one.layer, f"[red]kept:[/red] {one.reason}")
        return result
