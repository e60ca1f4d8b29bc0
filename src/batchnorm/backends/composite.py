"""The big steps in terms of a framework's array operations, on x's own dimensions.

Moments are constants here: `derivative.py` makes them functions of x. `steps.py` offers both.
"""

from __future__ import annotations

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
    share: Any = None
    own = room = None  # tensors of x's size that may be overwritten
    if weights is None:
        count = ops.full((g, 1), view.values_per_group, dtype, x)
        shift = ops.cast(ops.near(given, over), dtype)  # a view of x would hold it in 32 bits
    else:
        # NaN where nothing counts must not count
        x = own = ops.fill(x, ops.equal(weights, 0), 0)
        total = ops.long_sum(weights, over)
        count = ops.broadcast_to(ops.reshape(total, (-1, 1)), (g, 1))
        share = weights / ops.fill(total, ops.equal(total, 0), 1)
        room = ops.product(x, share, dtype)
        shift = ops.pin(ops.long_sum(room, over))

    def mean_of(values: Tensor, room: Tensor | None) -> Tensor:
        if weights is None:
            return ops.mean(values, over)
        return ops.long_sum(ops.product(values, share, dtype, into=room), over)

    shifted = ops.subtract(x, shift, into=own)
    remainder = mean_of(shifted, room)
    centered = ops.subtract(shifted, remainder, into=shifted)
    squares = ops.product(centered, centered, dtype, into=room)
    variance = mean_of(squares, squares)
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
    is x - mean of the shape `split`, where it is known, and its memory may become y's.
    """
    view, excluded = case.view, None
    if centered is None:
        centered, excluded = centered_on(ops, x, case, used)
    slope = view.along(ops, (factors or factors_of(ops, used.variance, scale, case.epsilon)).slope)
    dtype = ops.dtype(x)
    if offset is None:
        y = ops.product(centered, slope, dtype, into=centered)
    else:
        y = ops.add_product(view.along(ops, offset), centered, slope, dtype=dtype, into=centered)
    if excluded is not None:
        y = ops.stop_where(excluded, y)
    y = activated(ops, y, case.activation)
    return y if view.groups is None else ops.reshape(y, view.shape)


def centered_on(ops: Any, x: Tensor, case: Case, used: Moments) -> tuple[Tensor, Tensor | None]:
    """x - mean in the statistics' type and the shape `split`, and where a value is left out.

    That is where its weight is 0 and it is not finite: there 0 stands for it. None for nowhere.
    """
    view, weights = case.view, case.weights
    x = ops.cast(view.apart(ops, x), statistics_dtype(ops.dtype(x)))
    excluded = None if weights is None else ops.left_out(x, weights)
    centered = x - view.along(ops, used.mean)
    if used.remainder is not None:
        centered = ops.subtract(centered, view.along(ops, used.remainder), into=centered)
    if excluded is not None:
        centered = ops.fill(centered, excluded, 0)
    return centered, excluded


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
    return ops.fill(ops.rsqrt(ops.fill(total, constant, 1)), constant, 0)


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
