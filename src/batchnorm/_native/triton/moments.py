"""Mean, variance and count of each channel: by splits, and what the splits are together."""

import triton
import triton.language as tl

from batchnorm._native.triton.tiles import (
    among,
    filled,
    in_vectors,
    load_weights,
    loaded,
    mine,
    offsets,
    place,
    some_splits,
    span,
    total,
    where_there,
)


@triton.jit
def joined(mean, squares, count, other_mean, other_squares, other_count):
    """Mean, sum of squares around it and count of two sets of values.

    Reference: Chan, Golub & LeVeque 1979, equation 2.1.
    """
    shift = other_mean - mean
    both = count + other_count
    share = other_count / tl.where(both == 0, 1.0, both)
    squares += other_squares + shift * shift * count * share
    return mean + shift * share, squares, both


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "G", "B", "WA", "WG", "WB"])
def moments(
    x, weights, partial,
    rows, tiles, per_split, G, B, C, D, WA, WG, WB, WD,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """Mean, sum of squares around it, and count of a split: float64 `[3, splits, G * C]`.

    A chunk is CHUNK tiles: sums around a center in the lanes, merged in float64 with what was
    before. The center is the mean so far, as the statistics' type holds it, at first that of the
    first tile in which something counts: a mean of many values, never one, which may be anything.
    """
    C, D = in_vectors(C, D, LANES, WIDTH, VECTOR)
    group, channel, known = mine(tl.program_id(0), C, WIDTH)
    split = tl.program_id(1)
    first, last = span(split, per_split, tiles)
    center = tl.zeros((1, WIDTH), STATISTIC)
    n = tl.full((), 0, tl.float64)
    tile = first
    while (n == 0) & (tile < last):
        row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH, FULL)
        at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
        there = among(inside, known, WIDTH, FULL)
        value = loaded(x + at, there, STATISTIC, FULL, "")
        if weights is not None:
            weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
            value = tl.where(weight != 0, weight * value, 0.0)
            n = tl.sum(weight).to(tl.float64)
        else:
            n = filled(tile, rows, D, ROWS, LANES, WIDTH).to(tl.float64)
        center = (total(value, WIDTH) / tl.where(n == 0, 1.0, n)).to(STATISTIC)
        tile += 1

    count = tl.full((), 0, tl.float64)
    mean = tl.zeros((1, WIDTH), tl.float64)
    squares = tl.zeros((1, WIDTH), tl.float64)
    for start in range(first, last, CHUNK):
        sum_here = tl.zeros((ROWS, LANES), STATISTIC)
        squares_here = tl.zeros((ROWS, LANES), STATISTIC)
        if weights is not None:
            count_here = tl.full((), 0, tl.float64)
        else:
            count_here = tl.full((), 0, tl.int64)
        for tile in range(start, tl.minimum(start + CHUNK, last)):
            row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH, FULL)
            at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
            there = among(inside, known, WIDTH, FULL)
            value = loaded(x + at, there, STATISTIC, FULL, "")
            away = where_there(there, value - center, FULL)
            if weights is not None:
                weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
                away = tl.where(weight != 0, away, 0.0)  # what counts nothing may be NaN
                counted = weight * away
                count_here += tl.sum(weight).to(tl.float64)
            else:
                counted = away
                count_here += filled(tile, rows, D, ROWS, LANES, WIDTH)
            sum_here += counted
            squares_here = tl.fma(counted, away, squares_here)
        added = count_here.to(tl.float64)
        n = tl.where(added == 0, 1.0, added)
        away_here = total(sum_here, WIDTH) / n
        spread = total(squares_here, WIDTH) - n * away_here * away_here
        spread = tl.where(spread < 0, 0.0, spread)
        middle = center.to(tl.float64) + away_here
        mean, squares, count = joined(mean, squares, count, middle, spread, added)
        center = tl.where(count == 0, center, mean.to(STATISTIC))
    vectors = tl.full((), 0, tl.int64) + G * C
    size = tl.num_programs(1) * vectors
    at = split * vectors + group * C + channel
    tl.store(partial + at, mean, mask=known)
    tl.store(partial + size + at, squares, mask=known)
    tl.store(partial + 2 * size + at, count + tl.zeros_like(mean), mask=known)


@triton.jit
def merged(partial, at, known, vectors, splits, SPLITS: tl.constexpr):
    """Mean, variance and count of all splits, float64 `[1, WIDTH]`; zeros where nothing counts."""
    vectors = tl.full((), 0, tl.int64) + vectors
    size = splits * vectors
    mean = tl.zeros(at.shape, tl.float64)
    squares = tl.zeros(at.shape, tl.float64)
    count = tl.zeros(at.shape, tl.float64)
    for start in range(0, splits, SPLITS):
        lies, there = some_splits(start, at, known, vectors, splits, SPLITS)
        means = tl.load(partial + lies, mask=there, other=0)
        spread = tl.load(partial + size + lies, mask=there, other=0)
        counts = tl.load(partial + 2 * size + lies, mask=there, other=0)
        n = tl.sum(counts, axis=0, keep_dims=True)
        middle = tl.sum(counts * means, axis=0, keep_dims=True) / tl.where(n == 0, 1.0, n)
        shift = tl.where(counts == 0, 0.0, means - middle)
        spread = tl.sum(spread + counts * shift * shift, axis=0, keep_dims=True)
        mean, squares, count = joined(mean, squares, count, middle, spread, n)
    return mean, squares / tl.where(count == 0, 1.0, count), count


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
