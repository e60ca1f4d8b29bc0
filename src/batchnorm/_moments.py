"""Moments, and the one way to merge them: groups, replicas and batches all go through here."""

from __future__ import annotations

from typing import Any, NamedTuple

Tensor = Any


class Moments(NamedTuple):
    """Mean, biased variance and count of each channel of each group.

    Shapes: `[G, C]`; `count` is `[G, 1]` (it does not depend on the channel).

    The mean is the unevaluated sum `mean + remainder`: at |mean| / stddev = 1e5, float32 alone
    would lose 1e-2 standard deviations. `remainder` is None where there is nothing to carry.
    `count` is the number of values, or the sum of their weights; moving statistics have None. A
    group without values has mean 0, variance 0, count 0.
    """

    mean: Tensor
    remainder: Tensor | None
    variance: Tensor
    count: Tensor


def constant(ops: Any, moments: Moments) -> Moments:
    """The moments without their derivatives."""
    return Moments(*(ops.stop_gradient(part) for part in moments))


def average(ops: Any, moments: Moments, equal: bool = False) -> Moments:
    """One row from many: means of the groups' means and variances, weighted by their counts.

    Shapes: `[G, C]` -> `[1, C]`. The spread *between* the groups is left out, as in the originals
    (semantics.md section 6.3); see `merge` for the variance of everything.

    Args:
        equal: whether the groups are known to have the same count, not 0.
    """
    return _combine(ops, moments, equal, between=False)


def merge(ops: Any, moments: Moments, equal: bool = False) -> Moments:
    """One row from many: the moments of all values together.

    Shapes: `[G, C]` -> `[1, C]`; behind the first dimension there may be more.
    Reference: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances", equation 2.1, for any number of groups at once.
    """
    return _combine(ops, moments, equal, between=True)


def _combine(ops: Any, moments: Moments, equal: bool, *, between: bool) -> Moments:
    mean, remainder, variance, count = moments
    # one row serves equal groups
    groups = ops.shape(mean)[0]
    count = ops.broadcast_to(count, (groups, *ops.shape(count)[1:]))
    total = ops.sum(count, 0)  # [1, 1]
    # relative to something near, so that a large common offset cancels before anything is squared
    share: Any
    if equal:
        share, origin = 1.0 / groups, mean[:1]
    else:
        share = count / ops.fill(total, ops.equal(total, 0), 1)
        origin = ops.sum(share * mean, 0)
    shift = mean - origin
    if remainder is not None:
        shift = shift + remainder
    delta = ops.sum(share * shift, 0)
    pooled = ops.sum(share * variance, 0)
    if between:
        pooled = pooled + ops.sum(share * (shift - delta) * (shift - delta), 0)
    return Moments(origin, delta, pooled, total)


def merge_replicas(ops: Any, moments: Moments, replicas: Any) -> Moments:
    """The moments of every group over all replicas, the same bits on each of them.

    One collective: each replica sends its moments packed as `[G, 3C + 1]`. The result is constant.

    Shapes: `[G, C]`, count `[G, 1]`. Ghost batches: group j of all replicas is one group, and the
    result has the groups of the replica with most of them; the others sent a count of 0.
    """
    own = tuple(constant(ops, moments))
    c = ops.shape(moments.mean)[1]
    rows = ops.all_gather(ops.concatenate(own, 1), replicas)  # [R, G, 3C + 1]
    parts = rows[:, :, :c], rows[:, :, c : 2 * c], rows[:, :, 2 * c : 3 * c], rows[:, :, 3 * c :]
    merged: tuple[Any, ...] = merge(ops, Moments(*parts))
    return Moments(*(part[0] for part in merged))


def first_groups(moments: Moments, groups: Any) -> Moments:
    """The rows of a replica's own ghost batches; all of them where there are none."""
    if groups is None:
        return moments
    mean, remainder, variance, count = moments
    first = None if remainder is None else remainder[:groups]
    return Moments(mean[:groups], first, variance[:groups], count[:groups])


def unbiased(ops: Any, moments: Moments) -> Moments:
    """The moments with the variance divided by N - 1 instead of N (unchanged up to N = 1)."""
    count = moments.count
    few = ~(count > 1)
    factor = ops.fill(count / ops.fill(count - 1, few, 1), few, 1)
    return moments._replace(variance=moments.variance * factor)
