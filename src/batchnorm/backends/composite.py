"""The two big steps in terms of a framework's array operations.

Differentiable as they stand, to any order: nothing on the way from x to y is cut off (the originals
stop the gradient at the mean and get second derivatives wrong, D31). Only constants that cancel,
such as the shift, are.
"""

from __future__ import annotations

from typing import Any

from batchnorm._moments import Moments

Tensor = Any
Sizes = tuple[Any, Any, Any, Any, Any]

REDUCED = (0, 2, 4)


def statistics_dtype(dtype: str) -> str:
    """The type of moments and statistics for an input's: float32, or float64 for float64."""
    return "float64" if dtype == "float64" else "float32"


def moments(ops: Any, x: Tensor, sizes: Sizes, weights: Tensor | None) -> Moments:
    """Mean, biased variance and count per group and channel, accurate at any offset.

    Formula: with a shift near the mean, mean = shift + E[x - shift] and
    variance = E[(x - mean)^2]; the variance gets one correction step, v + E[(x - mean)^2 - v],
    because some frameworks add a million float32 numbers one after the other.

    Shapes: x reads as `[A, G, B, C, D]`, the `sizes`; weights `[A, G or 1, B, 1, D]` -> `[G, C]`,
    count `[G, 1]`.
    """
    a, g, b, c, d = sizes
    dtype = statistics_dtype(ops.dtype(x))
    x = ops.cast(ops.reshape(x, sizes), dtype)
    if weights is None:
        total = ops.full((1, 1, 1, 1, 1), a * b * d, dtype, x)
    else:
        # NaN where nothing counts must not count
        x = ops.where(ops.equal(weights, 0), ops.zeros_like(x), x)
        total = ops.pin(ops.wide_sum(weights, REDUCED), dtype)
    divisor = ops.where(ops.equal(total, 0), ops.ones_like(total), total)

    def mean_of(values: Tensor) -> Tensor:
        return ops.sum(values if weights is None else weights * values, REDUCED) / divisor

    rough_sum = ops.wide_sum(x if weights is None else weights * x, REDUCED)
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
    sizes: Sizes,
    moments: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    epsilon: float,
    weights: Tensor | None,
    activation: str | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + offset, then the activation; in x's type.

    Edge cases: variance + epsilon = 0 gives y = offset (D33). Where the weight is 0 and x is not
    finite, y = offset and no gradient passes, as if the value were not there.

    Shapes: x, which reads as `[A, G, B, C, D]`, the `sizes`, and y of x's shape; vectors
    `[G or 1, C]` or `(C,)`; weights `[A, G or 1, B, 1, D]`.
    """

    def spread(vector: Tensor) -> Tensor:
        *rows, columns = ops.shape(vector)
        return ops.reshape(vector, (1, *(rows or [1]), 1, columns, 1))

    wide = ops.cast(ops.reshape(x, sizes), statistics_dtype(ops.dtype(x)))
    centered = wide - spread(moments.mean)
    if moments.remainder is not None:
        centered = centered - spread(moments.remainder)
    excluded = None if weights is None else ops.equal(weights, 0) & ~ops.isfinite(wide)
    if excluded is not None:
        centered = ops.where(excluded, ops.zeros_like(centered), centered)
    factor = inverse_stddev(ops, moments.variance, epsilon)
    y = ops.multiply(centered, spread(factor if scale is None else factor * scale))
    if offset is not None:
        y = ops.add(y, spread(offset))
    if excluded is not None:
        y = ops.where(excluded, ops.stop_gradient(y), y)
    return ops.reshape(ops.cast(_activated(ops, y, activation), ops.dtype(x)), ops.shape(x))


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
    return ops.cast(_activated(ops, y, activation), ops.dtype(u))


def _activated(ops: Any, y: Tensor, activation: str | None) -> Tensor:
    if activation is None:
        return y
    return ops.where(y <= 0, ops.zeros_like(y), y)  # NaN stays NaN, and the slope at 0 is 0
