"""y, from moments or from the splits' partial ones."""

import triton
import triton.language as tl

from batchnorm._native.triton.moments import keep_moments, merged
from batchnorm._native.triton.tiles import (
    among,
    in_vectors,
    inverse_of,
    is_finite,
    load_or,
    load_weights,
    loaded,
    mine,
    offsets,
    place,
    span,
    standardized,
    store,
)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "splits", "G", "B", "WA", "WG", "WB"])
def standardize(
    x, residual, weights, partial, mean, remainder, variance, count, scale, offset, y,
    rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon: tl.float64,
    RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) / sqrt(variance + epsilon) * scale + offset, plus residual, then ReLU.

    With `partial`, the moments are what these are together, and the programs of the first split
    store them in `mean`, `remainder`, `variance` and `count`; without, they are read from there.
    """
    C, D = in_vectors(C, D, LANES, WIDTH, VECTOR)
    # backwards: what the moments read last may still be in the cache
    group, channel, known = mine(tl.num_programs(0) - 1 - tl.program_id(0), C, WIDTH)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
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

    first, last = span(split, per_split, tiles)
    for back in range(last - first):
        tile = last - 1 - back
        row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH, FULL)
        at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
        there = among(inside, known, WIDTH, FULL)
        value = loaded(x + at, there, STATISTIC, FULL, "evict_first")
        out = standardized(value, center, low, slope, shift)
        if weights is not None:
            weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
            out = tl.where((weight == 0) & ~is_finite(value), shift, out)
        if residual is not None:
            out += loaded(residual + at, there, STATISTIC, FULL, "evict_first")
        if RELU:
            out = tl.where(out < 0, 0.0, out)  # NaN stays NaN
        store(y + at, out, there, FULL)
