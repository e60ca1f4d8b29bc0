"""What `inspect` measured of one layer, channel by channel, and the numbers that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batchnorm.tools.norm import Array, Norm

LEFT = 0.01  # the share of the initial statistics that may be left: "enough updates"
DEAD = 1e-4  # share of the output's variance that a channel must have to be alive
SLOW = 0.05  # share of the initial statistics that may be left where they do not fit
FLAT = 1e-6  # of epsilon: the variance of a channel that is the same everywhere
_UNDERFLOW = 1e-30  # a variance whose parts float32 may have rounded to 0
SATURATED = 4.0  # |beta| / |gamma|: an activation behind it sees one side only


@dataclass(frozen=True)
class Profile:
    """One layer's measurements; arrays are `[C]`, variances biased.

    Attributes:
        mean, variance: of all values that reached the layer in training mode; NaN in a channel
            that no finite one reached.
        within: the mean over batches of the batches' variances; NaN there too.
        poisoned: of which channels something remembered is NaN, infinite or negative.
        not_finite: batches that were not finite.
        values: values per channel and normalization group, of each batch.
        rows: rows of each batch.
        calls: how often the model calls the layer in one pass.
        drift: root mean square of (output in training - in evaluation), in standard deviations.
        sample: `[n, C]`, some inputs of the layer.
    """

    norm: Norm
    mean: Array
    variance: Array
    within: Array
    moving_mean: Array
    moving_variance: Array
    poisoned: Array
    not_finite: Array
    values: list[float]
    rows: list[int]
    calls: int
    drift: float
    sample: Array

    def seen(self) -> Array:
        """Channels that the data says something of."""
        return np.isfinite(self.mean)

    def distance(self) -> Array:
        """|mean of the data - moving mean|, in standard deviations of the data."""
        with np.errstate(all="ignore"):
            scale = np.sqrt(self.variance + self.norm.epsilon)
            return np.abs(self.mean - self.moving_mean) / np.where(scale > 0, scale, 1.0)

    def log_ratio(self, variance: Array | None = None) -> Array:
        """log(variance of the data / moving variance), with epsilon."""
        of = self.variance if variance is None else variance
        with np.errstate(all="ignore"):
            tiny = np.finfo(np.float64).tiny
            return np.log(of + self.norm.epsilon + tiny) - np.log(
                self.moving_variance + self.norm.epsilon + tiny
            )

    def misfit(self) -> float:
        """How far the statistics are from the data; above 1 is more than chance and habit explain.

        A mean off by half a standard deviation, or a variance off by a factor of 2, is 1; with few
        rows the limits are three standard errors.
        """
        some = ~self.poisoned & self.seen()
        if not some.any():
            return 0.0
        rows = max(sum(self.rows), 1)
        distance = _rms(self.distance()[some]) / max(0.5, 3 / math.sqrt(rows))
        ratio = _rms(self.log_ratio()[some]) / max(math.log(2), 3 * math.sqrt(2 / rows))
        return max(distance, ratio)

    def scaled(self) -> Array:
        """Channels whose values vary by more than epsilon hides: the others decide nothing.

        In them squares underflow on the device, and what a batch holds is exactly 0.
        """
        with np.errstate(invalid="ignore"):
            return self.variance > max(FLAT * self.norm.epsilon, _UNDERFLOW)

    def between(self) -> float:
        """The share of the variance that lies between the batches' means; 0 for one batch."""
        some = self.scaled() & np.isfinite(self.variance)
        if len(self.rows) < 2 or self.calls > 1 or not some.any():
            return 0.0
        return float(np.mean(1 - self.within[some] / self.variance[some]))

    def unlike(self) -> bool:
        """Whether batches differ from each other more than batches of random rows do."""
        rows = max(min(self.rows), 1)
        return self.between() > 2 / rows + 0.05

    def learned_from_batches(self) -> bool:
        """Whether the moving variance fits the variance within batches better than all of it."""
        some = ~self.poisoned & self.seen()
        within = _rms(self.log_ratio(self.within)[some])
        return within < _rms(self.log_ratio()[some])

    def updates(self) -> int | None:
        """How many updates made the statistics; None where that is not known.

        A counter is not believed where it stands at 0 beside statistics that are not the initial
        ones, nor where taking the initial share out, as the counter has it, leads away from the
        data: statistics that were loaded or re-estimated have a counter that says nothing of them.
        """
        count, momentum = self.norm.updates(), self.norm.momentum
        if count is None or (count == 0 and not self.norm.untouched()):
            return None
        initial = self.norm.initial
        if not count or momentum is None or initial is None or self.norm.settles_at_once():
            return count
        left = momentum ** max(count - self.norm.skipped(), 0)
        if left <= SLOW or left == 1:
            return count
        mean, variance = (
            (moving - left * start) / (1 - left)
            for moving, start in zip(self._moving(), initial, strict=True)
        )
        return (
            count if self._off(mean, np.maximum(variance, 0)) < self._off(*self._moving()) else None
        )

    def _moving(self) -> tuple[Array, Array]:
        return self.moving_mean, self.moving_variance

    def _off(self, mean: Array, variance: Array) -> float:
        """How far these statistics are from the data, roughly."""
        some = ~self.poisoned & self.seen()
        with np.errstate(all="ignore"):
            scale = self.variance[some] + self.norm.epsilon
            distance = np.abs(self.mean[some] - mean[some]) / np.sqrt(scale)
            ratio = np.log((variance[some] + self.norm.epsilon) / scale)
        return _rms(np.minimum(distance, 10)) + _rms(np.clip(ratio, -10, 10))

    def needed(self) -> int | None:
        """Updates until 1 % of the initial statistics is left; None where momentum is not known."""
        momentum = self.norm.momentum
        if momentum is None or momentum >= 1:
            return None
        if self.norm.settles_at_once():
            return 1
        return 1 if momentum <= LEFT else math.ceil(math.log(LEFT) / math.log(momentum))

    def left(self) -> float:
        """The share of the initial statistics that is left: counted, or else as the values say.

        Where nothing counts the updates: statistics that lie on the line from their start to those
        of the data have the rest of that line still to go. Off the line, nothing is left.
        """
        updates, momentum = self.updates(), self.norm.momentum
        if self.norm.settles_at_once():
            return 0.0
        if updates is not None:
            return 0.0 if momentum is None else momentum ** max(updates - self.norm.skipped(), 0)
        if self.norm.updates() is not None:
            return 0.0  # a counter that says nothing of them: they were put there
        some = ~self.poisoned & self.seen()
        if self.norm.initial is None or not some.any():
            return 0.0
        mean, variance = self.norm.initial
        scale = self.variance[some] + self.norm.epsilon
        shares = [
            _share((moving[some] - start) / unit, (data[some] - start) / unit)
            for moving, data, start, unit in (
                (self.moving_mean, self.mean, mean, np.sqrt(scale)),
                (self.moving_variance, self.variance, variance, scale),
            )
        ]
        known = [share for share in shares if share is not None]
        if not known or max(known) >= 1 or min(known) < 0 or max(known) - min(known) > 0.2:
            return 0.0
        return 1 - sum(known) / len(known)

    def dead(self) -> Array:
        """Channels whose output does not vary."""
        gamma, _ = self.norm.host_parameters()
        square = 1.0 if gamma is None else gamma**2
        with np.errstate(all="ignore"):
            return square * self.variance / (self.variance + self.norm.epsilon) < DEAD

    def saturated(self) -> Array:
        """Channels whose output lies on one side of 0, for good or for nothing."""
        gamma, beta = self.norm.host_parameters()
        if beta is None:
            return np.zeros(len(self.mean), bool)
        size = np.ones_like(beta) if gamma is None else np.abs(gamma)
        return (np.abs(beta) > SATURATED * size) & ~self.dead()

    def collapsed(self) -> Array:
        """Channels whose moving variance is nothing beside epsilon."""
        return (self.moving_variance >= 0) & (self.moving_variance < 1e-3 * self.norm.epsilon)

    def worst(self) -> list[int]:
        """Channels from the worst on: poisoned, then the farthest from the data."""
        with np.errstate(all="ignore"):
            off = self.distance() + np.abs(self.log_ratio())
        return [int(one) for one in np.argsort(-np.where(self.poisoned, np.inf, off))]


def _share(gone: Array, way: Array) -> float | None:
    """How much of the way is gone; 1 where it leads elsewhere, None where there is no way to go."""
    length = float(way @ way)
    if length < 1e-2 * len(way):
        return None
    share = float(gone @ way) / length
    off = gone - share * way
    return share if off @ off <= 0.1 * (gone @ gone) else 1.0


def _rms(values: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
