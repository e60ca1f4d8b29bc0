"""Moments of batches made into one, on the host in float64: by the library's one merge."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from batchnorm._moments import Moments, average, merge, unbiased
from batchnorm.backends import host

METHODS = ("exact", "average", "ema")


def pool(
    ops: Any,
    old: Moments,
    new: Moments,
    method: str,
    momentum: float | None,
) -> Moments:
    """What was pooled so far and one batch more, as one row `[1, C]`.

    exact: the moments of all values. average: the mean of the batches' means and variances. ema:
    the same with weights that fall by `momentum` from batch to batch, so that nothing of a start
    is in it. A batch without values changes nothing.
    """
    if method == "exact":
        combine, counts = merge, (old.count, new.count)
    else:
        combine = average
        one, zero = ops.ones_like(new.count), ops.zeros_like(new.count)
        some = new.count > 0
        decay = 1.0 if method == "average" or momentum is None else momentum
        counts = (old.count * ops.where(some, decay * one, one), ops.where(some, one, zero))
    mean, remainder, variance = (
        ops.concatenate(pair, 0) for pair in zip(old[:3], new[:3], strict=True)
    )
    return combine(ops, Moments(mean, remainder, variance, ops.concatenate(counts, 0)))


class Pool:
    """Moments pooled batch by batch; a channel leaves out the batches where it was not finite.

    Attributes:
        mean, variance: `[C]`, the variance biased.
        count: `[C]`, the number (or weight) of values for "exact", of batches for "average", and
            the batches' weight for "ema".
        values: values per channel over all batches.
        calls: how often the layer was called.
        skipped: `[C]`, how many batches were left out.
    """

    def __init__(self, channels: int, method: str, momentum: float | None, unbiased: bool) -> None:
        self.mean = np.zeros(channels)
        self.variance = np.zeros(channels)
        self.count = np.zeros(channels)
        self.skipped = np.zeros(channels, int)
        self.values = 0.0
        self.calls = 0
        self._method, self._momentum, self._unbiased = method, momentum, unbiased

    def add(self, moments: Moments) -> None:
        """Takes in a batch: moments `[1, C]` as a backend returned them."""
        mean, remainder, variance, count = (np.asarray(v, np.float64) for v in moments)
        batch = Moments(mean + remainder, np.zeros_like(mean), variance, count[:, :1])
        if self._unbiased and self._method != "exact":  # as the layer would have remembered it
            batch = unbiased(host, batch)
        self._take(batch, self._method)
        self.values += float(count[0, 0])
        self.calls += 1

    def include(self, other: Pool) -> None:
        """Takes in what another replica pooled."""
        how = "exact" if self._method == "exact" else "weighted"
        for count in np.unique(other.count):
            these = other.count == count
            mean, variance = other.mean[None], other.variance[None]
            batch = Moments(mean, np.zeros_like(mean), variance, np.full((1, 1), count))
            self._take(batch, how, these)
        self.skipped += other.skipped
        self.values += other.values
        self.calls += other.calls

    def final(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance as the layer is to hold them."""
        if not self._unbiased or self._method != "exact":
            return self.mean, self.variance
        row = Moments(self.mean[None], None, self.variance[None], self.count[None])
        return self.mean, np.asarray(unbiased(host, row).variance)[0]

    def given(self) -> Moments:
        """The pooled moments in float32, for a forward pass that goes on from them.

        The count is `[1, C]`: a channel may have left out batches that the others have.
        """
        mean = self.mean.astype(np.float32)
        remainder = (self.mean - mean).astype(np.float32)
        variance, count = self.variance.astype(np.float32), self.count.astype(np.float32)
        return Moments(mean[None], remainder[None], variance[None], count[None])

    def _take(self, batch: Moments, method: str, these: np.ndarray | None = None) -> None:
        finite = np.isfinite(batch.mean[0]) & np.isfinite(batch.variance[0])
        usable = finite & (batch.variance[0] >= 0)
        if these is not None:
            usable &= these
        elif batch.count[0, 0] > 0:
            self.skipped += ~usable
        for count, chosen in self._alike(usable):
            mean, variance = self.mean[None, chosen], self.variance[None, chosen]
            old = Moments(mean, np.zeros_like(mean), variance, np.full((1, 1), count))
            assert batch.remainder is not None
            mean, remainder = batch.mean[:, chosen], batch.remainder[:, chosen]
            new = Moments(mean, remainder, batch.variance[:, chosen], batch.count)
            self._store(chosen, old, new, method)

    def _alike(self, usable: np.ndarray) -> list[tuple[float, Any]]:
        """The usable channels that have seen equally much, and how much that is."""
        if usable.all() and (self.count == self.count[:1]).all():  # almost always
            return [(count, slice(None)) for count in self.count[:1]]
        return [(count, usable & (self.count == count)) for count in np.unique(self.count[usable])]

    def _store(self, chosen: Any, old: Moments, new: Moments, method: str) -> None:
        if method == "weighted":
            rows = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
            result = average(host, Moments(*rows))
        else:
            result = pool(host, old, new, method, self._momentum)
        assert result.remainder is not None
        self.mean[chosen] = (result.mean + result.remainder)[0]
        self.variance[chosen] = result.variance[0]
        self.count[chosen] = result.count[0, 0]


def across_replicas(pools: list[Pool]) -> list[Pool]:
    """The pools of all PyTorch processes together; these, where there is only one process."""
    first, *others = of_all_replicas(pools)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            mine.include(theirs)
    return first


def of_all_replicas(value: Any) -> list[Any]:
    """What each PyTorch process has, in their order; of one process, what it has.

    JAX and TensorFlow: arrays that a program spreads over devices are already whole here.
    """
    torch = sys.modules.get("torch")
    distributed = None if torch is None else torch.distributed
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return [value]
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, value)
    return every
