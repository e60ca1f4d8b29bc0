"""Mean, variance and count of each channel: by splits, and what the splits are together."""

import triton
import triton.language as tl

from batchnorm._native.triton.tiles import (
    filled,
    load_weights,
    mine,
    offsets,
    place,
    total,
)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "G", "B", "WA", "WG", "WB"])
def moments(
    x, weights, partial,
    rows, tiles, per_split, G, B, C, D, WA, WG, WB, WD,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUPED: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """Mean, sum of squares around it, and count of a split: float64 `[3, splits, G * C]`.

    A chunk is CHUNK tiles: sums around a center in the lanes, merged in float64 with what was
    before. The center is the mean so far, as the statistics' type holds it, at first that of a
    tile: a mean of many values, never one value, which may be anything. With weights CHUNK is 1:
    any tile may be the first in which something counts.

    Reference: Chan, Golub & LeVeque 1979, equation 2.1.
    """
    group, channel, known = mine(tl.program_id(0), C, WIDTH)
    split = tl.full((), 0, tl.int64) + tl.program_id(1)
    first = split * per_split
    last = tl.minimum(first + per_split, tiles)
    count = tl.full((), 0, tl.float64)
    mean = tl.zeros((1, WIDTH), tl.float64)
    squares = tl.zeros((1, WIDTH), tl.float64)
    center = tl.zeros((1, WIDTH), STATISTIC)
    for start in range(first, last, CHUNK):
        sum_here = tl.zeros((ROWS, LANES), STATISTIC)
        squares_here = tl.zeros((ROWS, LANES), STATISTIC)
        count_here = tl.full((), 0, tl.float64)
        unseen = count == 0
        for tile in range(start, tl.minimum(start + CHUNK, last)):
            row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH)
            at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
            there = inside & known
            value = tl.load(x + at, mask=there, other=0, eviction_policy="evict_last").to(STATISTIC)
            counted = value
            if weights is not None:
                weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
                there = there & (weight != 0)
                value = tl.where(there, value, 0.0)  # NaN where nothing counts must not count
                counted = weight * value
                n = tl.sum(weight).to(tl.float64)
            else:
                n = filled(tile, rows, D, ROWS, LANES, WIDTH)
            if unseen & (tile == start):
                center = (total(counted, WIDTH) / tl.where(n == 0, 1.0, n)).to(STATISTIC)
            away = tl.where(there, value - center, 0.0)
            counted = away
            if weights is not None:
                counted = weight * away
            sum_here += counted
            squares_here = tl.fma(counted, away, squares_here)
            count_here += n
        n = tl.where(count_here == 0, 1.0, count_here)
        away_here = total(sum_here, WIDTH) / n
        spread = total(squares_here, WIDTH) - n * away_here * away_here
        spread = tl.where(spread < 0, 0.0, spread)
        shift = center.to(tl.float64) + away_here - mean
        before = count
        count += count_here
        share = count_here / tl.where(count == 0, 1.0, count)
        squares += spread + shift * shift * before * share
        mean += shift * share
        center = mean.to(STATISTIC)
    vectors = tl.full((), 0, tl.int64) + G * C
    size = tl.num_programs(1) * vectors
    at = split * vectors + group * C + channel
    tl.store(partial + at, mean, mask=known)
    tl.store(partial + size + at, squares, mask=known)
    tl.store(partial + 2 * size + at, count + tl.zeros_like(mean), mask=known)


@triton.jit
def merged(partial, at, known, vectors, splits, SPLITS: tl.constexpr):
    """Mean, variance and count of all splits, float64 `[1, WIDTH]`; zeros where nothing counts."""
    split = tl.arange(0, SPLITS)[:, None]
    vectors = tl.full((), 0, tl.int64) + vectors
    at = split * vectors + at
    known = known & (split < splits)
    size = splits * vectors
    mean = tl.load(partial + at, mask=known, other=0)
    squares = tl.load(partial + size + at, mask=known, other=0)
    count = tl.load(partial + 2 * size + at, mask=known, other=0)
    n = tl.sum(count, axis=0, keep_dims=True)
    divisor = tl.where(n == 0, 1.0, n)
    middle = tl.sum(count * mean, axis=0, keep_dims=True) / divisor
    shift = tl.where(count == 0, 0.0, mean - middle)
    squares = tl.sum(squares + count * shift * shift, axis=0, keep_dims=True)
    return middle, squares / divisor, n


@triton.jit(do_not_specialize=["G", "C", "splits"])
def merge(
    partial, mean, remainder, variance, count, G, C, splits,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """The moments of each channel, where something else must know them before y can be made."""
    group, channel, known = mine(tl.program_id(0), C, WIDTH)
    at = group * C + channel
    middle, square, n = merged(partial, at, known, G * C, splits, SPLITS)
    keep_moments(mean, remainder, variance, count, group, at, known, middle, square, n, STATISTIC)


@triton.jit
def keep_moments(
    mean, remainder, variance, count, group, at, known, middle, square, n,
    STATISTIC: tl.constexpr,
):  # fmt: skip
    """Stores moments: the mean as a sum of two numbers, so that the statistics' type holds it."""
    high = middle.to(STATISTIC)
    low = tl.where(high - high == 0, (middle - high.to(tl.float64)).to(STATISTIC), 0.0)
    tl.store(mean + at, high, mask=known)
    tl.store(remainder + at, low, mask=known)
    tl.store(variance + at, square.to(STATISTIC), mask=known)
    # the same for all channels of a group, whichever program is the last to write it
    tl.store(count + group + tl.zeros_like(at), n.to(STATISTIC), mask=known)
