"""The big steps in terms of a framework's array operations, on x's own dimensions.

Differentiable as they stand, to any order: nothing on the way from x to y is cut off (the originals
stop the gradient at the mean and get second derivatives wrong, D31). Only constants that cancel,
such as the shift, are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from batchnorm._moments import Moments, attached

Tensor = Any
SMALLEST = 1.2e-38  # what float32 holds with all its digits: below, epsilon may vanish


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

    `own` is what a framework takes for `affine_map`, where it has better operations for it.
    """

    def __init__(self, ops: Any, own: Callable[..., Tensor] | None = None) -> None:
        self.ops = ops
        self.affine = own or functools.partial(affine_map, ops)

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
        if case.weights is not None:  # what is left out may not be finite
            return standardize(self.ops, x, case, used, scale, offset)
        y = self.affine(x, case.view, used.mean, used.variance, scale, offset, case.epsilon)
        return activated(self.ops, y, case.activation)

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
    factor = view.spread(ops, factor_of(ops, variance, scale, epsilon))
    wide = ops.cast(x, statistics_dtype(ops.dtype(x)))
    y = (wide - view.spread(ops, mean)) * factor
    if offset is not None:
        y = y + view.spread(ops, offset)
    return ops.cast(y, ops.dtype(x))


def factor_of(ops: Any, variance: Tensor, scale: Tensor | None, epsilon: float) -> Tensor:
    """scale / sqrt(variance + epsilon), and 0 where that would divide by zero."""
    if epsilon < SMALLEST:
        inverse = inverse_stddev(ops, variance, epsilon)
    else:
        inverse = ops.rsqrt(variance + epsilon)
    return inverse if scale is None else inverse * scale


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
    return ops.relu(y)
