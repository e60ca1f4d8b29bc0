"""Checkpoints whose moving statistics died: `repair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm.tools.data import Batches, Caller
from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find
from batchnorm.tools.reestimation import Reestimation, estimate, kept_if_raised
from batchnorm.tools.result import Result, new_table

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class Repaired:
    """One layer that was poisoned.

    Attributes:
        channels: those that were poisoned.
        how: "re-estimated" (the whole layer), "reset" (those channels, to mean 0, variance 1), or
            "derived": their moving statistics were sound, and what only training reads is set from
            them.
    """

    layer: str
    channels: tuple[int, ...]
    how: str

    def __str__(self) -> str:
        count = len(self.channels)
        words = f"{count} channel{'s' if count > 1 else ''} poisoned"
        if self.how == "reset":
            return (
                f"{self.layer}: {words}; reset to mean 0 and variance 1, which are no statistics "
                "of anything: re-estimate with data before you rely on them."
            )
        if self.how == "derived":
            source = "set from its moving statistics"
            return f"{self.layer}: {words} in what only training reads; {source}."
        return f"{self.layer}: {words}; re-estimated from the data."


@dataclass(frozen=True)
class Repair(Result):
    """What `repair` did.

    Attributes:
        layers: those that were poisoned; none if the model was sound.
        still: layers with channels that were reset in spite of data: it is not finite there.
        parameters: layers whose gamma or beta is not finite, which no data can bring back.
        estimation: what `reestimate` returns; None without data, or where nothing was poisoned.
    """

    layers: tuple[Repaired, ...]
    still: tuple[str, ...]
    parameters: tuple[str, ...]
    estimation: Reestimation | None

    def sentences(self) -> list[str]:
        lines = [str(one) for one in self.layers]
        lines += [f"{name}: this data has no finite value for some of them." for name in self.still]
        lines += [
            f"{name}: gamma or beta is not finite: only an older checkpoint can bring it back."
            for name in self.parameters
        ]
        return lines or ["Nothing is poisoned."]

    def table(self) -> Table:
        result = new_table(f"Repaired {len(self.layers)}")
        result.add_column("layer", no_wrap=True)
        result.add_column("channels", justify="right")
        result.add_column("how")
        for one in self.layers:
            result.add_row(one.layer, str(len(one.channels)), one.how)
        return result

    def __rich__(self) -> Group:
        """The sentences: a table of poisoned channels says less."""
        from rich.console import Group
        from rich.text import Text

        return Group(*(Text(line) for line in self.sentences()))


def repair(
    model: Any,
    data: Any = None,
    steps: int | None = None,
    *,
    batch_size: int = 32,
    call: Caller | None = None,
) -> Repair:
    """Replaces statistics that are NaN, infinite or negative; leaves sound layers alone.

    These are the moving statistics, and what renorm and `zero_debias` remember beside them. With
    data, each poisoned layer is re-estimated as a whole (`reestimate(method="exact")`). Without,
    channels without sound moving statistics are reset to mean 0 and variance 1, and the result says
    so: such a model runs, but those channels are not normalized by anything that was measured.

    Args:
        model: a built Keras model on any backend, or a PyTorch module.
        data, steps, batch_size, call: as for `reestimate`.

    Raises:
        TypeError, ValueError: an argument is not what it must be. The model is as it was then.
    """
    norms = find(model, "repair")
    sick = [norm for norm in norms if norm.unsound().any()]
    masks = [(norm.unsound(), norm.unsound_statistics()) for norm in sick]
    estimation = None
    with kept_if_raised(sick):
        for norm, (poisoned, lost) in zip(sick, masks, strict=True):
            mean, variance = norm.host_statistics()
            norm.set_host_statistics(
                np.where(lost, 0.0, mean), np.where(lost, 1.0, variance), poisoned
            )
        if data is not None and sick:
            batches = Batches(model, data, batch_size, steps, "repair", call)
            estimation = estimate(model, sick, batches, "repair")
    found = {} if estimation is None else {one.name: one for one in estimation.layers}
    layers, still = [], []
    for norm, (poisoned, lost) in zip(sick, masks, strict=True):
        row = found.get(norm.name)
        # a channel that saw no finite value keeps the reset
        whole = row is not None and row.kept == 0
        rest = {"reset": lost, "derived": poisoned & ~lost}
        for how, part in ({"re-estimated": poisoned} if whole else rest).items():
            if part.any():
                channels = tuple(int(one) for one in np.flatnonzero(part))
                layers.append(Repaired(norm.name, channels, how))
        if data is not None and not whole:
            still.append(norm.name)
    broken = [norm.name for norm in norms if _broken_parameters(norm)]
    return Repair(tuple(layers), tuple(still), tuple(broken), estimation)


def _broken_parameters(norm: Norm) -> bool:
    return any(one is not None and not np.isfinite(one).all() for one in norm.host_parameters())
