"""The seam over the kinds of batch-normalization layers: what a tool asks of one.

Keras' own layer, ours, and PyTorch's modules answer under the same names. Statistics and
parameters are flat float64 NumPy arrays of one value per channel, whatever the layer's axes are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm import _axes
from batchnorm._moments import Moments
from batchnorm._weights import combined_weights
from batchnorm.backends import backend_of
from batchnorm.backends.composite import Case, statistics_dtype

Array = np.ndarray


class Norm:
    """A batch-normalization layer with its name in the model; see the module's words.

    Attributes:
        unbiased: whether it remembers the variance divided by N - 1.
        initial: mean and variance before the first update; None where they are not constants.
    """

    kind: str
    unbiased = False
    momentum: float | None
    epsilon: float
    initial: tuple[float, float] | None = (0.0, 1.0)

    def __init__(self, layer: Any, name: str) -> None:
        self.layer, self.name = layer, name

    @property
    def owner(self) -> str:
        return f"{type(self.layer).__name__} {self.name!r}"

    def statistics(self) -> tuple[Array, Array]:
        """Moving mean and variance."""
        raise NotImplementedError

    def parameters(self) -> tuple[Array | None, Array | None]:
        """Gamma and beta; None for the one that the layer has not."""
        raise NotImplementedError

    def remembered(self) -> dict[str, Array]:
        """Everything that is remembered of each channel, by name."""
        mean, variance = self.statistics()
        return {"moving_mean": mean, "moving_variance": variance}

    def poisoned(self) -> Array:
        """Of which channels something is NaN, infinite, or a negative variance or deviation."""
        return np.any([_dead(name, value) for name, value in self.remembered().items()], axis=0)

    def lost(self) -> Array:
        """Which channels have no sound moving statistics."""
        mean, variance = self.statistics()
        return _dead("mean", mean) | _dead("variance", variance)

    def assign(self, mean: Array, variance: Array, which: Array | None = None) -> None:
        """Makes these the moving statistics, and everything that must agree with them.

        which: a mask of channels; the others keep all that they have.
        """
        raise NotImplementedError

    def place(self, mean: Any, variance: Any) -> None:
        """Tensors `[1, C]` as the moving statistics of the call to come, inside a forward pass."""
        raise NotImplementedError

    def held(self, dtype: str) -> tuple[Any, Any]:
        """The moving mean and variance as tensors `[1, C]`."""
        raise NotImplementedError

    def state(self) -> list[Any]:
        """Copies of everything that the layer remembers, for `restore`."""
        raise NotImplementedError

    def restore(self, state: list[Any]) -> None:
        """What `state` returned, bit for bit."""
        raise NotImplementedError

    def updates(self) -> int | None:
        """How many updates the statistics have seen; None where nothing counts them."""
        return None

    def skipped(self) -> int:
        """How many updates were refused for not being finite, in the worst channel."""
        return 0

    def frozen(self) -> str | None:
        """Why training leaves the statistics alone, in a few words; None where it does not."""
        raise NotImplementedError

    def uses_batch(self) -> bool:
        """Whether training normalizes with the batch."""
        raise NotImplementedError

    def group_size(self) -> int | None:
        """The size of ghost batches, if it normalizes those in training."""
        return None

    def renorm(self) -> bool:
        """Whether training pulls the batch's statistics to running ones."""
        return False

    def own_training(self) -> bool:
        """Whether training is more than normalizing with the batch's moments (renorm, ghosts)."""
        return False

    def path(self) -> tuple[str, str | None]:
        """What runs, and why not our fused kernels."""
        raise NotImplementedError

    def axes(self, rank: int) -> tuple[int, ...]:
        raise NotImplementedError

    def measured(self, x: Any, mask: Any, batch_weights: Any) -> Moments:
        """The moments of all values of x per channel, `[1, C]`, count `[1, 1]`, on x's device."""
        ops = backend_of(x)
        view = _axes.view(ops.shape(x), self.axes(len(ops.shape(x))))
        dtype = statistics_dtype(ops.dtype(x))
        weights = combined_weights(ops, self.owner, view, x, dtype, mask, batch_weights)
        steps = ops.COMPOSITE if ops.why_not(x) else ops.KERNELS
        case = Case(view, weights, 0.0, None)
        mean, remainder, variance, count = steps.moments(steps.wide(x), case)
        flat = (1, view.features)
        count = ops.broadcast_to(count, (ops.shape(mean)[0], 1))[:1]  # the same for every channel
        mean, remainder, variance = (ops.reshape(v, flat) for v in (mean, remainder, variance))
        return Moments(mean, remainder, variance, count)


def _dead(name: str, value: Array) -> Array:
    negative = (value < 0) & name.endswith(("variance", "stddev"))
    return ~np.isfinite(value) | negative
