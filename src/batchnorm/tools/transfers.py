"""What `transfer` did: rows for the layers, and how far outputs are apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batchnorm.tools.result import Result, new_table

if TYPE_CHECKING:
    from rich.table import Table


class Differences(NamedTuple):
    """The largest difference of two layers' outputs on the same inputs, over the largest output.

    evaluation: in evaluation. one, ten: in training and in evaluation behind it, after one step
    and after ten. NaN where only one of the two is NaN.
    """

    evaluation: float
    one: float
    ten: float

    def __str__(self) -> str:
        return (
            f"{self.evaluation:.1e} in evaluation, {self.one:.1e} after one training step, "
            f"{self.ten:.1e} after ten"
        )


@dataclass(frozen=True)
class Transferred:
    """One layer that took over another.

    Attributes:
        source, target: their names.
        channels: how many.
        options: of the target that became other ones, in words; "variance times 0.96875" where
            the two remember another variance.
        differences: None without data, or where the source was not called.
    """

    source: str
    target: str
    channels: int
    options: tuple[str, ...]
    differences: Differences | None

    def __str__(self) -> str:
        set_ = f"; set {', '.join(self.options)}" if self.options else ""
        words = "" if self.differences is None else f" Outputs differ by {self.differences}."
        return f"{self.source}: {self.channels} channels went into {self.target}{set_}.{words}"


@dataclass(frozen=True)
class Transfer(Result):
    """What `transfer` did.

    Attributes:
        layers: in the order of the source.
        never_called: targets whose source the data did not reach, so that nothing is proven.
        variables: the new variables of a linen target; None for others.
    """

    layers: tuple[Transferred, ...]
    never_called: tuple[str, ...]
    variables: Any = field(default=None, repr=False, compare=False)

    @property
    def differences(self) -> Differences | None:
        """The largest of all layers."""
        found = [one.differences for one in self.layers if one.differences is not None]
        if not found:
            return None
        columns = zip(*found, strict=True)
        return Differences(*(float(np.max(column)) for column in columns))  # NaN is the worst

    def sentences(self) -> list[str]:
        lines = [str(one) for one in self.layers]
        missed = "the data did not reach it; it was transferred, and nothing is proven of it"
        return lines + [f"{name}: {missed}." for name in self.never_called]

    def table(self) -> Table:
        result = new_table(f"Transferred {len(self.layers)}")
        for name in ("from", "to"):
            result.add_column(name, no_wrap=True)
        for name in ("channels", "evaluation", "one step", "ten steps"):
            result.add_column(name, justify="right")
        result.add_column("set")
        for row in self.layers:
            found = row.differences
            numbers = ("", "", "") if found is None else tuple(f"{one:.1e}" for one in found)
            texts = (row.source, row.target, str(row.channels), *numbers)
            result.add_row(*texts, ", ".join(row.options))
        return result
