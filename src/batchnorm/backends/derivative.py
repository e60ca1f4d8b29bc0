"""The derivative of `composite.standardize`, as a formula on x's own dimensions.

`standardize` is differentiated by `backward`, with moments that are constants: it keeps x and
vectors. What is differentiated further is that formula, with the moments `attached` to x again, so
derivatives of every order are exact (the originals stop the gradient at the mean and get second
derivatives wrong, D31).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from batchnorm._moments import Moments
from batchnorm.backends.composite import Case, Factors, centered_on, factors_of, standardize

Tensor = Any


def differentiable(
    ops: Any,
    x: Tensor,
    case: Case,
    used: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None = None,
    replicas: Any = None,
    centered: Tensor | None = None,
) -> Tensor:
    """`standardize` as a function of x through its moments too, for any transformation of it."""
    used = attached(ops, x, case, used, live, replicas)
    return standardize(ops, x, case, used, scale, offset)


class Slopes(NamedTuple):
    """The derivative of `standardize`: of x, and of scale and offset in their shapes or None."""

    x: Tensor
    scale: Tensor | None
    offset: Tensor | None


def backward(
    ops: Any,
    x: Tensor,
    dy: Tensor,
    case: Case,
    used: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None = None,
    frozen: bool = False,
    replicas: Any = None,
    factors: Factors | None = None,
) -> Slopes:
    """The total derivative of `standardize`, the path of x through its moments included.

    Formula, with xh = (x - mean) * k, k = 1 / sqrt(variance + epsilon), weights w of total W:
        dx = k * scale * (dy - w/W * (sum(dy) + xh * sum(dy * xh)))
    where the activation passes dy on; with statistics that are `frozen`, and in groups that are not
    `live`, dx = k * scale * dy. Both sums are over all `replicas`, those of scale and offset are
    one's own.

    Its own derivative takes `attached` moments in place of constants: exact at every order.
    """
    view, weights = case.view, case.weights
    _, g, _, c, _ = view.canonical
    centered, excluded = centered_on(ops, x, case, used)
    inverse, slope = factors or factors_of(ops, used.variance, scale, case.epsilon)
    dy = ops.cast(view.apart(ops, dy), ops.dtype(centered))
    for stopped in (_stopped(ops, case, centered, slope, offset), excluded):
        if stopped is not None:
            dy = ops.fill(dy, stopped, 0)
    products = dy * centered
    sum_dy, sum_dy_centered = (
        ops.reshape(ops.long_sum(one, view.reduced), (g, c)) for one in (dy, products)
    )
    sum_dy_xh = sum_dy_centered * inverse
    d_scale = None if scale is None else _like(ops, view, sum_dy_xh, scale)
    d_offset = None if offset is None else _like(ops, view, sum_dy, offset)
    if not frozen:
        if replicas is not None:
            both = replicas.all_reduce(ops.concatenate((sum_dy, sum_dy_xh), 1))
            sum_dy, sum_dy_xh = both[:, :c], both[:, c:]
        times: Any = 1.0
        if weights is None and replicas is None and not ops.is_tensor(view.values_per_group):
            times = 1.0 / max(view.values_per_group, 1)
        else:
            share = _share(ops, used.count, live)
            sum_dy, sum_dy_xh = sum_dy * share, sum_dy_xh * share
        along_dy, along_xh = view.along(ops, sum_dy), view.along(ops, sum_dy_xh * inverse)
        if weights is None:
            dy = ops.subtract(dy, along_dy, times, into=products)
            dy = ops.add_product(dy, centered, along_xh, -times, into=products)
        else:
            common = ops.add_product(along_dy, centered, along_xh, into=centered)
            dy = ops.add_product(dy, weights, common, -1.0, into=products)
    dx = ops.product(dy, view.along(ops, slope), ops.dtype(x), into=products)
    return Slopes(dx if view.groups is None else ops.reshape(dx, view.shape), d_scale, d_offset)


def _share(ops: Any, count: Tensor, live: Tensor | None) -> Tensor:
    """1 / count, and 0 for the groups without values, or with others' moments."""
    absent = ops.equal(count, 0) if live is None else ~live
    return ops.fill(1.0 / ops.fill(count, absent, 1), absent, 0)


def attached(
    ops: Any, x: Tensor, case: Case, used: Moments, live: Tensor | None = None, replicas: Any = None
) -> Moments:
    """The moments `used`, constants, as what they are: functions of x, of any order.

    Formula, with the constants M and V and E_w the weighted average over all replicas:
        mean = M + E_w[x - M], variance = V + E_w[(x - mean)^2 - V]
    so that what is added up is near 0: a compiler may add a million float32 one after the other.
    Groups that are not `live` have others' moments, which stay constants.
    """
    view, weights = case.view, case.weights
    _, g, _, c, _ = view.canonical
    used = Moments(*(None if one is None else ops.stop_gradient(one) for one in used))
    count = ops.fill(used.count, ops.equal(used.count, 0), 1)
    centered, _ = centered_on(ops, x, case, used)
    if weights is not None:  # a value that does not count may be infinite
        centered = ops.fill(centered, ops.equal(weights, 0), 0)

    def average(values: Tensor) -> Tensor:
        values = values if weights is None else weights * values
        total = ops.reshape(ops.long_sum(values, view.reduced), (g, c))
        return (total if replicas is None else replicas.all_reduce(total)) / count

    moved = average(centered)
    centered = centered - view.along(ops, moved)
    variance = used.variance + average(centered * centered - view.along(ops, used.variance))
    remainder = moved if used.remainder is None else used.remainder + moved
    if live is not None:
        constant = ops.zeros_like(remainder) if used.remainder is None else used.remainder
        remainder = ops.where(live, remainder, constant)
        variance = ops.where(live, variance, used.variance)
    return Moments(used.mean, remainder, variance, used.count)


def _stopped(
    ops: Any, case: Case, centered: Tensor, slope: Tensor, offset: Tensor | None
) -> Tensor | None:
    """Where the activation passes no derivative on; None for nowhere."""
    if case.activation is None:
        return None
    along = case.view.along
    if offset is None:
        return centered * along(ops, slope) <= 0  # NaN passes
    return ops.add_product(along(ops, offset), centered, along(ops, slope)) <= 0


def _like(ops: Any, view: Any, total: Tensor, vector: Tensor) -> Tensor:
    """The gradient `[G, C]` of a vector in its own shape: summed where it serves all groups."""
    shape = ops.shape(vector)
    if view.groups is not None and (len(shape) == 1 or _is_one(ops, shape[0])):
        total = ops.sum(total, 0)
    return ops.reshape(total, shape)


def _is_one(ops: Any, size: Any) -> bool:
    return not ops.is_tensor(size) and size == 1
