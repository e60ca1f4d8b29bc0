"""The big steps in terms of a framework's array operations, on x's own dimensions.

Differentiable as they stand, to any order: nothing on the way from x to y is cut off (the originals
stop the gradient at the mean and get second derivatives wrong, D31). Only constants that cancel,
such as the shift, are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from batchnorm._moments import Moments, attached

Tensor = Any


class Case(NamedTuple):
    """What all steps of a call have in common.

    `view` is a `batchnorm._axes.View`; weights have its shape `split`, but 1 on the axes.
    """

    view: Any
    weights: Tensor | None
    epsilon: float
    activation: str | None


def statistics_dtype(dtype: str) -> str:
    """The type of moments and statistics for an input's: float32, or float64 for float64."""
    return "float64" if dtype == "float64" else "float32"


class Steps:
    """Moments and standardization in the operations of one framework.

    The kernels of a framework have the same methods. There moments are constants, and
    `standardize` has their derivative; here moments are functions of x.
    """

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def wide(self, x: Tensor) -> Tensor:
        """x for several steps: 16 bits become 32 once, so that a derivative's parts add up so."""
        return self.ops.cast(x, statistics_dtype(self.ops.dtype(x)))

    def moments(self, x: Tensor, case: Case) -> Moments:
        """Mean, biased variance and count of each channel of each group; see `moments`."""
        return moments(self.ops, x, case)

    def over(self, measured: Moments, merged: Moments, replicas: Any) -> Moments:
        """What normalizes where the moments of all replicas were merged."""
        return attached(self.ops, merged, measured, replicas)

    def standardize(
        self,
        x: Tensor,
        case: Case,
        used: Moments,
        scale: Tensor | None,
        offset: Tensor | None,
        live: Tensor | None = None,
        replicas: Any = None,
    ) -> Tensor:
        """y in x's shape and type; see `standardize`."""
        return standardize(self.ops, x, case, used, scale, offset)

    def forward(
        self, x: Tensor, case: Case, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Moments]:
        """`moments`, then `standardize` with them."""
        wide = self.wide(x)
        measured = moments(self.ops, wide, case)
        y = standardize(self.ops, wide, case, measured, scale, offset)
        return self.ops.cast(y, self.ops.dtype(x)), measured

    def infer(
        self, x: Tensor, case: Case, used: Moments, scale: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        """An affine map on x's own shape: `standardize` with statistics that are constants."""
        return standardize(self.ops, x, case, used, scale, offset)

    def remember(
        self, state: Any, measured: Moments, momentum: float, unbiased: bool, propagate: bool
    ) -> Any:
        """The plain moving averages after a step, by one kernel: here there is none."""
        return None


def moments(ops: Any, x: Tensor, case: Case) -> Moments:
    """Mean, biased variance and count per group and channel, accurate at any offset.

    Formula: with a shift near the mean, mean = shift + E[x - shift] and
    variance = E[(x - mean)^2]; the variance gets one correction step, v + E[(x - mean)^2 - v],
    because some frameworks add a million float32 numbers one after the other.

    Shapes: x as given to the layer -> `[G, C]`, count `[G, 1]`.
    """
    view, weights = case.view, case.weights
    _, g, _, c, _ = view.canonical
    over = view.reduced
    dtype = statistics_dtype(ops.dtype(x))
    x = ops.cast(view.apart(ops, x), dtype)
    if weights is None:
        total = ops.full([1] * len(view.split), view.values_per_group, dtype, x)
    else:
        # NaN where nothing counts must not count
        x = ops.where(ops.equal(weights, 0), ops.zeros_like(x), x)
        total = ops.pin(ops.wide_sum(weights, over), dtype)
    divisor = ops.where(ops.equal(total, 0), ops.ones_like(total), total)

    def mean_of(values: Tensor) -> Tensor:
        return ops.sum(values if weights is None else weights * values, over) / divisor

    rough_sum = ops.wide_sum(x if weights is None else weights * x, over)
    shift = ops.stop_gradient(ops.pin(rough_sum / ops.cast(divisor, ops.dtype(rough_sum)), dtype))
    shifted = x - shift
    remainder = mean_of(shifted)
    squares = (shifted - remainder) * (shifted - remainder)
    rough = ops.stop_gradient(mean_of(squares))
    variance = rough + mean_of(squares - rough)
    return Moments(
        mean=ops.reshape(shift, (g, c)),
        remainder=ops.reshape(remainder, (g, c)),
        variance=ops.reshape(variance, (g, c)),
        count=ops.broadcast_to(ops.reshape(total, (-1, 1)), (g, 1)),
    )


def standardize(
    ops: Any,
    x: Tensor,
    case: Case,
    used: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + offset, then the activation; in x's type.

    Edge cases: variance + epsilon = 0 gives y = offset (D33). Where the weight is 0 and x is not
    finite, y = offset and no gradient passes, as if the value were not there.

    Shapes: x as given to the layer, and y of x's shape; vectors `[G or 1, C]` or `(C,)`.
    """
    view, weights = case.view, case.weights
    wide = ops.cast(view.apart(ops, x), statistics_dtype(ops.dtype(x)))
    centered = wide - view.along(ops, used.mean)
    if used.remainder is not None:
        centered = centered - view.along(ops, used.remainder)
    excluded = None if weights is None else ops.equal(weights, 0) & ~ops.isfinite(wide)
    if excluded is not None:
        centered = ops.where(excluded, ops.zeros_like(centered), centered)
    factor = inverse_stddev(ops, used.variance, case.epsilon)
    y = ops.multiply(centered, view.along(ops, factor if scale is None else factor * scale))
    if offset is not None:
        y = ops.add(y, view.along(ops, offset))
    if excluded is not None:
        y = ops.where(excluded, ops.stop_gradient(y), y)
    y = ops.cast(activated(ops, y, case.activation), ops.dtype(x))
    return y if view.groups is None else ops.reshape(y, view.shape)


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
    rows = (g, c)
    dtype = statistics_dtype(ops.dtype(x))
    centered, excluded = _centered(ops, x, case, used)
    factor = inverse_stddev(ops, used.variance, case.epsilon)
    slope = factor if scale is None else factor * scale
    dy = ops.cast(view.apart(ops, dy), dtype)
    passed = _passed(ops, case, centered, slope, offset)
    if excluded is not None:
        passed = ~excluded if passed is None else passed & ~excluded
    if passed is not None:
        dy = ops.where(passed, dy, ops.zeros_like(dy))
    sum_dy, sum_dy_centered = (
        ops.reshape(ops.long_sum(one, view.reduced), rows) for one in (dy, dy * centered)
    )
    sum_dy_xh = sum_dy_centered * factor
    d_scale = None if scale is None else _like(ops, view, sum_dy_xh, scale)
    d_offset = None if offset is None else _like(ops, view, sum_dy, offset)
    if not frozen:
        if replicas is not None:
            both = replicas.all_reduce(ops.concatenate((sum_dy, sum_dy_xh), 1))
            sum_dy, sum_dy_xh = both[:, :c], both[:, c:]
        count = used.count
        share = 1.0 / ops.where(ops.equal(count, 0), ops.ones_like(count), count)
        if live is not None:
            share = ops.where(live, share, ops.zeros_like(share))
        mean_dy = view.along(ops, sum_dy * share)
        through = mean_dy + centered * view.along(ops, sum_dy_xh * factor * share)
        dy = dy - (through if weights is None else weights * through)
    dx = ops.cast(dy * view.along(ops, slope), ops.dtype(x))
    return Slopes(dx if view.groups is None else ops.reshape(dx, view.shape), d_scale, d_offset)


def attached(
    ops: Any, x: Tensor, case: Case, used: Moments, live: Tensor | None = None, replicas: Any = None
) -> Moments:
    """The moments `used`, constants, as what they are: functions of x, of any order.

    Formula, with the constant mean M and E_w the weighted average over all replicas:
        mean = M + E_w[x - M], variance = E_w[(x - mean)^2]
    Groups that are not `live` have others' moments, which stay constants.
    """
    view, weights = case.view, case.weights
    _, g, _, c, _ = view.canonical
    used = Moments(*(None if one is None else ops.stop_gradient(one) for one in used))
    count = ops.where(ops.equal(used.count, 0), ops.ones_like(used.count), used.count)
    centered, _ = _centered(ops, x, case, used)
    if weights is not None:  # a value that does not count may be infinite
        centered = ops.where(ops.equal(weights, 0), ops.zeros_like(centered), centered)

    def average(values: Tensor) -> Tensor:
        values = values if weights is None else weights * values
        total = ops.reshape(ops.long_sum(values, view.reduced), (g, c))
        return (total if replicas is None else replicas.all_reduce(total)) / count

    moved = average(centered)
    centered = centered - view.along(ops, moved)
    variance = average(centered * centered)
    remainder = moved if used.remainder is None else used.remainder + moved
    if live is not None:
        constant = ops.zeros_like(remainder) if used.remainder is None else used.remainder
        remainder = ops.where(live, remainder, constant)
        variance = ops.where(live, variance, used.variance)
    return Moments(used.mean, remainder, variance, used.count)


def _centered(ops: Any, x: Tensor, case: Case, used: Moments) -> tuple[Tensor, Tensor | None]:
    """x - mean in the statistics' type and the shape `split`, and where a value is left out.

    That is where its weight is 0 and it is not finite: there 0 stands for it.
    """
    view, weights = case.view, case.weights
    x = ops.cast(view.apart(ops, x), statistics_dtype(ops.dtype(x)))
    centered = x - view.along(ops, used.mean)
    if used.remainder is not None:
        centered = centered - view.along(ops, used.remainder)
    if weights is None:
        return centered, None
    excluded = ops.equal(weights, 0) & ~ops.isfinite(x)
    return ops.where(excluded, ops.zeros_like(centered), centered), excluded


def _passed(
    ops: Any, case: Case, centered: Tensor, slope: Tensor, offset: Tensor | None
) -> Tensor | None:
    """Where the activation passes a derivative on; None for everywhere."""
    if case.activation is None:
        return None
    y = centered * case.view.along(ops, slope)
    if offset is not None:
        y = y + case.view.along(ops, offset)
    return ~(y <= 0)  # NaN passes


def _like(ops: Any, view: Any, total: Tensor, vector: Tensor) -> Tensor:
    """The gradient `[G, C]` of a vector in its own shape: summed where it serves all groups."""
    shape = ops.shape(vector)
    if view.groups is not None and (len(shape) == 1 or _is_one(ops, shape[0])):
        total = ops.sum(total, 0)
    return ops.reshape(total, shape)


def _is_one(ops: Any, size: Any) -> bool:
    return not ops.is_tensor(size) and size == 1


def inverse_stddev(ops: Any, variance: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(variance + epsilon), and 0 where that would divide by zero."""
    total = variance + epsilon
    constant = ops.equal(total, 0)
    one = ops.ones_like(total)
    return ops.where(
        constant, ops.zeros_like(total), one / ops.sqrt(ops.where(constant, one, total))
    )


def affine(
    ops: Any, u: Tensor, scale: Tensor | None, offset: Tensor | None, activation: str | None
) -> Tensor:
    """u * scale + offset, then the activation, in u's type; factors may have any shape."""
    y = ops.cast(u, statistics_dtype(ops.dtype(u)))
    if scale is not None:
        y = y * scale
    if offset is not None:
        y = y + offset
    return ops.cast(activated(ops, y, activation), ops.dtype(u))


def activated(ops: Any, y: Tensor, activation: str | None) -> Tensor:
    """The activation of y; NaN stays NaN, and the slope of ReLU at 0 is 0."""
    if activation is None:
        return y
    return ops.where(y <= 0, ops.zeros_like(y), y)
