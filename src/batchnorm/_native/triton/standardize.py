"""y, from moments or from the splits' partial ones."""

import triton
import triton.language as tl

from batchnorm._native.triton.moments import keep_moments, merged
from batchnorm._native.triton.tiles import (
    inverse_of,
    is_finite,
    load_or,
    load_weights,
    mine,
    offsets,
    place,
    standardized,
)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "splits", "G", "B", "WA", "WG", "WB"])
def standardize(
    x, residual, weights, partial, mean, remainder, variance, count, scale, offset, y,
    rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon: tl.float64,
    RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) / sqrt(variance + epsilon) * scale + offset, plus residual, then ReLU.

    With `partial`, the moments are what these are together, and the programs of the first split
    store them in `mean`, `remainder`, `variance` and `count`; without, they are read from there.
    """
    # backwards: what the moments read last may still be in the cache
    group, channel, known = mine(tl.num_programs(0) - 1 - tl.program_id(0), C, WIDTH)
    split = tl.full((), 0, tl.int64) + (tl.num_programs(1) - 1 - tl.program_id(1))
    vector = group * C + channel
    if partial is not None:
        middle, square, n = merged(partial, vector, known, G * C, splits, SPLITS)
        center = middle.to(STATISTIC)
        low = tl.where(is_finite(center), (middle - center.to(tl.float64)).to(STATISTIC), 0.0)
        spread = square.to(STATISTIC)
        if split == 0:
            keep_moments(
                mean, remainder, variance, count, group, vector, known, middle, square, n, STATISTIC
            )
    else:
        center = tl.load(mean + vector, mask=known, other=0)
        low = load_or(remainder, vector, known, 0.0, STATISTIC)
        spread = tl.load(variance + vector, mask=known, other=1)
    slope = inverse_of(spread, epsilon, STATISTIC) * load_or(scale, vector, known, 1.0, STATISTIC)
    shift = load_or(offset, vector, known, 0.0, STATISTIC)

    first = split * per_split
    last = tl.minimum(first + per_split, tiles)
    for back in range(last - first):
        tile = last - 1 - back
        row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH)
        at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
        there = inside & known
        value = tl.load(x + at, mask=there, other=0, eviction_policy="evict_first").to(STATISTIC)
        out = standardized(value, center, low, slope, shift)
        if weights is not None:
            weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
            out = tl.where((weight == 0) & ~is_finite(value), shift, out)
        if residual is not None:
            out += tl.load(residual + at, mask=there, other=0, eviction_policy="evict_first").to(
                STATISTIC
            )
        if RELU:
            out = tl.where(out < 0, 0.0, out)  # NaN stays NaN
        tl.store(y + at, out.to(y.dtype.element_ty), mask=there, eviction_policy="evict_first")
