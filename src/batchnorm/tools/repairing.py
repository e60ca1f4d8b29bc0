"""Checkpoints whose moving statistics died: `repair`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find
from batchnorm.tools.reestimation import Reestimation, estimate, kept_if_raised


@dataclass(frozen=True)
class Repaired:
    """One layer that was poisoned.

    Attributes:
        channels: the channels whose moving mean or variance was NaN, infinite or negative.
        how: "re-estimated" (the whole layer), or "reset" (those channels, to mean 0, variance 1).
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
        return f"{self.layer}: {words}; re-estimated from the data."


@dataclass(frozen=True)
class Repair:
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

    def __str__(self) -> str:
        lines = [str(one) for one in self.layers]
        lines += [f"{name}: this data has no finite value for some of them." for name in self.still]
        lines += [
            f"{name}: gamma or beta is not finite: only an older checkpoint can bring it back."
            for name in self.parameters
        ]
        return "\n".join(lines) or "Nothing is poisoned."


def repair(
    model: Any, data: Any = None, steps: int | None = None, *, batch_size: int = 32
) -> Repair:
    """Replaces moving statistics that are NaN, infinite or negative; leaves sound layers alone.

    With data, each poisoned layer is re-estimated as a whole (`reestimate(method="exact")`).
    Without, its poisoned channels are reset to mean 0 and variance 1, and the result says so: such
    a model runs, but those channels are not normalized by anything that was measured.

    Args:
        model: a built Keras model on any backend, or a PyTorch module.
        data, steps, batch_size: as for `reestimate`.

    Raises:
        TypeError, ValueError: an argument is not what it must be. The model is as it was then.
    """
    norms = find(model, "repair")
    sick = [norm for norm in norms if len(poisoned(norm))]
    channels = {norm.name: tuple(int(one) for one in poisoned(norm)) for norm in sick}
    estimation = None
    with kept_if_raised(sick):
        for norm in sick:
            _reset(norm)
        if data is not None and sick:
            estimation = estimate(model, sick, data, steps, batch_size, "repair")
    found = {} if estimation is None else {one.name: one for one in estimation.layers}
    layers, still = [], []
    for norm in sick:
        row = found.get(norm.name)
        # a channel that saw no finite value keeps the reset
        whole = row is not None and row.kept == 0
        layers.append(
            Repaired(norm.name, channels[norm.name], "re-estimated" if whole else "reset")
        )
        if data is not None and not whole:
            still.append(norm.name)
    broken = [norm.name for norm in norms if _broken_parameters(norm)]
    return Repair(tuple(layers), tuple(still), tuple(broken), estimation)


def poisoned(norm: Norm) -> np.ndarray:
    """Indices of the channels whose moving statistics are NaN, infinite or negative."""
    mean, variance = norm.statistics()
    return np.flatnonzero(~np.isfinite(mean) | ~np.isfinite(variance) | ~(variance >= 0))


def _reset(norm: Norm) -> None:
    mean, variance = norm.statistics()
    which = poisoned(norm)
    mean[which], variance[which] = 0.0, 1.0
    norm.assign(mean, variance)


def _broken_parameters(norm: Norm) -> bool:
    return any(one is not None and not np.isfinite(one).all() for one in norm.parameters())
