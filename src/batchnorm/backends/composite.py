"""The big steps in terms of a framework's array operations, on x's own dimensions.

`standardize` is differentiated by a formula, `backward`, with moments that are constants: it keeps
x and vectors. What is differentiated further is that formula, with the moments `attached` to x
again, so derivatives of every order are exact (the originals stop the gradient at the mean and get
second derivatives wrong, D31).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from batchnorm._moments import Moments

Tensor = Any
SMALLEST = 1.2e-38  # what float32 holds with all its digits: below, epsilon may vanish


class Case(NamedTuple):
    """What all steps of a call have in common.

    `view` is a `batchnorm._axes.View`; weights have its shape `split`, but 1 on the axes. A
    residual, like x, is for kernels that add it.
    """

    view: Any
    weights: Tensor | None
    epsilon: float
    activation: str | None
    residual: Tensor | None = None


def statistics_dtype(dtype: str) -> str:
    """The type of moments and statistics for an input's: float32, or float64 for float64."""
    return "float64" if dtype == "float64" else "float32"


class Factors(NamedTuple):
    """1 / sqrt(variance + epsilon), and that times scale."""

    inverse: Tensor
    slope: Tensor


class Steps:
    """Moments and standardization in the operations of one framework.

    The kernels of a framework have the same methods. What is a framework's own: `affine` for
    `affine_map` where it has better operations; `derived`, which is `differentiable` with one
    derivative that keeps x and vectors; `remember`, the plain moving averages in fewer operations.
    """

    whole = None

    def __init__(
        self,
        ops: Any,
        affine: Callable[..., Tensor] | None = None,
        derived: Callable[..., Tensor] | None = None,
        remember: Callable[..., Any] | None = None,
    ) -> None:
        self.ops = ops
        self.affine = affine or functools.partial(affine_map, ops)
        self._derived = derived or functools.partial(differentiable, ops)
        self._remember = remember

    def moments(self, x: Tensor, case: Case) -> Moments:
        """Mean, biased variance and count of each channel of each group; see `measured`."""
        return measured(self.ops, self.ops.stop_gradient(x), case)[0]

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
        return self._derived(x, case, used, scale, offset, live, replicas)

    def forward(
        self, x: Tensor, case: Case, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Moments]:
        """`moments`, then `standardize` with them."""
        found, centered = measured(self.ops, self.ops.stop_gradient(x), case)
        return self._derived(x, case, found, scale, offset, None, None, centered), found

    def infer(
        self, x: Tensor, case: Case, used: Moments, scale: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        """An affine map on x's own shape: `standardize` with statistics that are constants."""
        if case.weights is not None:  # what is left out may not be finite
            return standardize(self.ops, x, case, used, scale, offset)
        y = self.affine(x, case.view, used.mean, used.variance, scale, offset, case.epsilon)
        return activated(self.ops, y, case.activation)

    def remember(
        self, state: Any, measured: Moments, momentum: float, unbiased: bool, propagate: bool
    ) -> Any:
        """The plain moving averages after a step, where every channel has values; None: not so."""
        if self._remember is None:
            return None
        return self._remember(state, measured, momentum, unbiased, propagate)


def measured(ops: Any, x: Tensor, case: Case) -> tuple[Moments, Tensor | None]:
    """Mean, biased variance and count per group and channel, accurate at any offset.

    Formula: with a shift near the mean, mean = shift + E[x - shift], variance = E[(x - mean)^2].

    Shapes: x as given to the layer -> `[G, C]`, count `[G, 1]`; without weights also x - mean, of
    the shape `split`.
    """
    view, weights = case.view, case.weights
    _, g, _, c, _ = view.canonical
    over = view.reduced
    dtype = statistics_dtype(ops.dtype(x))
    given = view.apart(ops, x)
    x = ops.cast(given, dtype)
    if weights is None:
        count = ops.full((g, 1), view.values_per_group, dtype, x)
        shift = ops.cast(ops.near(given, over), dtype)  # a view of x would hold it in 32 bits
    else:
        # NaN where nothing counts must not count
        x = ops.where(ops.equal(weights, 0), ops.zeros_like(x), x)
        total = ops.long_sum(weights, over)
        count = ops.broadcast_to(ops.reshape(total, (-1, 1)), (g, 1))
        divisor = ops.where(ops.equal(total, 0), ops.ones_like(total), total)
        shift = ops.pin(ops.long_sum(weights * x, over) / divisor)

    def mean_of(values: Tensor) -> Tensor:
        if weights is None:
            return ops.mean(values, over)
        return ops.long_sum(weights * values, over) / divisor

    shifted = x - shift
    remainder = mean_of(shifted)
    centered = shifted - remainder
    variance = mean_of(centered * centered)
    mean, remainder, variance = (ops.reshape(v, (g, c)) for v in (shift, remainder, variance))
    found = Moments(mean, remainder, variance, count)
    return found, centered if weights is None else None


def standardize(
    ops: Any,
    x: Tensor,
    case: Case,
    used: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    factors: Factors | None = None,
    centered: Tensor | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + offset, then the activation; in x's type.

    Edge cases: variance + epsilon = 0 gives y = offset (D33). Where the weight is 0 and x is not
    finite, y = offset and no gradient passes, as if the value were not there.

    Shapes: x as given to the layer, and y of x's shape; vectors `[G or 1, C]` or `(C,)`; `centered`
    is x - mean of the shape `split`, where it is known.
    """
    view, excluded = case.view, None
    if centered is None:
        centered, excluded = _centered(ops, x, case, used)
    slope = view.along(ops, (factors or factors_of(ops, used.variance, scale, case.epsilon)).slope)
    dtype = ops.dtype(x)
    if offset is None:
        y = ops.product(centered, slope, dtype)
    else:
        y = ops.add_product(view.along(ops, offset), centered, slope, dtype=dtype)
    if excluded is not None:
        y = ops.where(excluded, ops.stop_gradient(y), y)
    y = activated(ops, y, case.activation)
    return y if view.groups is None else ops.reshape(y, view.shape)


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
    centered, excluded = _centered(ops, x, case, used)
    inverse, slope = factors or factors_of(ops, used.variance, scale, case.epsilon)
    dy = ops.cast(view.apart(ops, dy), ops.dtype(centered))
    passed = _passed(ops, case, centered, slope, offset)
    if excluded is not None:
        passed = ~excluded if passed is None else passed & ~excluded
    if passed is not None:
        dy = ops.where(passed, dy, ops.zeros_like(dy))
    sum_dy, sum_dy_centered = (
        ops.reshape(ops.long_sum(one, view.reduced), (g, c)) for one in (dy, dy * centered)
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
            dy = ops.subtract(dy, along_dy, times)
            dy = ops.add_product(dy, centered, along_xh, -times)
        else:
            dy = dy - weights * (along_dy + centered * along_xh)
    dx = ops.product(dy, view.along(ops, slope), ops.dtype(x))
    return Slopes(dx if view.groups is None else ops.reshape(dx, view.shape), d_scale, d_offset)


def _share(ops: Any, count: Tensor, live: Tensor | None) -> Tensor:
    """1 / count, and 0 for the groups without values, or with others' moments."""
    share = 1.0 / ops.where(ops.equal(count, 0), ops.ones_like(count), count)
    return share if live is None else ops.where(live, share, ops.zeros_like(share))


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


def factors_of(ops: Any, variance: Tensor, scale: Tensor | None, epsilon: Any) -> Factors:
    """What x - mean is multiplied by, without scale and with it."""
    inverse = inverse_stddev(ops, variance, epsilon)
    return Factors(inverse, inverse if scale is None else inverse * scale)


def affine_map(
    ops: Any,
    x: Tensor,
    view: Any,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
) -> Tensor:
    """y = (x - mean) * factor + offset on x's own dimensions, in x's type.

    A program that leaves the process holds these three operations, and vectors that it can fold
    into constants. The mean is subtracted first: `x * factor + (offset - mean * factor)` is one
    operation less and loses all digits that |mean| / stddev has.

    Shapes: vectors `[G, C]` or `(C,)`.
    """
    factor = view.spread(ops, factors_of(ops, variance, scale, epsilon).slope)
    wide = ops.cast(x, statistics_dtype(ops.dtype(x)))
    y = (wide - view.spread(ops, mean)) * factor
    if offset is not None:
        y = y + view.spread(ops, offset)
    return ops.cast(y, ops.dtype(x))


def inverse_stddev(ops: Any, variance: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(variance + epsilon), and 0 where that would divide by zero."""
    total = variance + epsilon
    if isinstance(epsilon, float) and epsilon >= SMALLEST:
        return ops.rsqrt(total)
    constant = ops.equal(total, 0)
    one = ops.ones_like(total)
    inverse = ops.rsqrt(ops.where(constant, one, total))
    return ops.where(constant, ops.zeros_like(total), inverse)


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
    return ops.relu(y)
