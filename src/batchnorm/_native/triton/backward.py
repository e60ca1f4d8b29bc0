"""The two sums of the backward pass: by splits, and together; and dx."""

import triton
import triton.language as tl

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
    some_splits,
    span,
    standardized,
    store,
    total,
    where_there,
)


@triton.jit
def passed(
    dy, y, at, there, value, center, low, slope, shift, excluded,
    RELU: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """dy where the activation passed it on, said by y where it was saved."""
    if RELU:
        if y is not None:
            before = loaded(y + at, there, dy.dtype, FULL, "")
        else:
            before = standardized(value, center, low, slope, shift)
            if excluded is not None:
                before = tl.where(excluded, shift, before)
        dy = tl.where(before > 0, dy, 0.0)
    return dy


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "G", "B", "WA", "WG", "WB"])
def backward_sums(
    x, dy, y, weights, partial, mean, remainder, variance, scale, offset,
    rows, tiles, per_split, G, B, C, D, WA, WG, WB, WD, epsilon: tl.float64,
    RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """sum(dy) and sum(dy * (x - mean)) of a split: float64 `[2, splits, G * C]`.

    The mean here is what its type holds; `summed` takes care of the remainder.
    """
    C, D = in_vectors(C, D, LANES, WIDTH, VECTOR)
    group, channel, known = mine(tl.program_id(0), C, WIDTH)
    split = tl.program_id(1)
    vector = group * C + channel
    center = tl.load(mean + vector, mask=known, other=0)
    low = load_or(remainder, vector, known, 0.0, STATISTIC)
    spread = tl.load(variance + vector, mask=known, other=1)
    slope = inverse_of(spread, epsilon, STATISTIC) * load_or(scale, vector, known, 1.0, STATISTIC)
    shift = load_or(offset, vector, known, 0.0, STATISTIC)

    first, last = span(split, per_split, tiles)
    sums = tl.zeros((1, WIDTH), tl.float64)
    products = tl.zeros((1, WIDTH), tl.float64)
    for start in range(first, last, CHUNK):
        sums_here = tl.zeros((ROWS, LANES), STATISTIC)
        products_here = tl.zeros((ROWS, LANES), STATISTIC)
        for tile in range(start, tl.minimum(start + CHUNK, last)):
            row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH, FULL)
            at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
            there = among(inside, known, WIDTH, FULL)
            value = loaded(x + at, there, STATISTIC, FULL, "")
            d = loaded(dy + at, there, STATISTIC, FULL, "")
            excluded = None
            if weights is not None:
                weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
                excluded = (weight == 0) & ~is_finite(value)
            d = passed(d, y, at, there, value, center, low, slope, shift, excluded, RELU, FULL)
            away = where_there(there, value - center, FULL)
            if weights is not None:  # as if the element were not there
                away = tl.where(excluded, 0.0, away)
                d = tl.where(excluded, 0.0, d)
            sums_here += d
            products_here = tl.fma(d, away, products_here)
        sums += total(sums_here, WIDTH)
        products += total(products_here, WIDTH)
    vectors = tl.full((), 0, tl.int64) + G * C
    at = split * vectors + vector
    tl.store(partial + at, sums, mask=known)
    tl.store(partial + tl.num_programs(1) * vectors + at, products, mask=known)


@triton.jit
def summed(partial, at, known, vectors, splits, low, inverse, SPLITS: tl.constexpr):
    """sum(dy) and sum(dy * xh) of all splits, float64 `[1, WIDTH]`."""
    vectors = tl.full((), 0, tl.int64) + vectors
    sums = tl.zeros(at.shape, tl.float64)
    products = tl.zeros(at.shape, tl.float64)
    for start in range(0, splits, SPLITS):
        lies, there = some_splits(start, at, known, vectors, splits, SPLITS)
        some = tl.load(partial + lies, mask=there, other=0)
        sums += tl.sum(some, axis=0, keep_dims=True)
        some = tl.load(partial + splits * vectors + lies, mask=there, other=0)
        products += tl.sum(some, axis=0, keep_dims=True)
    return sums, (products - low.to(tl.float64) * sums) * inverse.to(tl.float64)


@triton.jit(do_not_specialize=["G", "C", "splits"])
def merge_sums(
    partial, remainder, variance, sum_dy, sum_dy_xh, G, C, splits, epsilon: tl.float64,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """The two sums of each channel, where others are added to them before dx can be made."""
    group, channel, known = mine(tl.program_id(0), C, WIDTH)
    at = group * C + channel
    low = load_or(remainder, at, known, 0.0, STATISTIC)
    spread = tl.load(variance + at, mask=known, other=1)
    inverse = inverse_of(spread, epsilon, STATISTIC)
    sums, products = summed(partial, at, known, G * C, splits, low, inverse, SPLITS)
    tl.store(sum_dy + at, sums.to(STATISTIC), mask=known)
    tl.store(sum_dy_xh + at, products.to(STATISTIC), mask=known)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "splits", "G", "B", "WA", "WG", "WB"])
def backward_input(
    x, dy, y, weights, partial, count, mean, remainder, variance, scale, offset, live,
    sum_dy, sum_dy_xh, dx, d_residual,
    rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon: tl.float64,
    RELU: tl.constexpr, FROZEN: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """dx = k * scale * (dy - live * w / count * (sum_dy + xh * sum_dy_xh)); frozen: k * scale * dy.

    With `partial`, the sums are what these are together, and the programs of the first split store
    them in `sum_dy` and `sum_dy_xh`; without, they are read from there. `d_residual` gets dy where
    the activation passed it on.
    """
    C, D = in_vectors(C, D, LANES, WIDTH, VECTOR)
    # backwards: what the sums read last may still be in the cache
    group, channel, known = mine(tl.num_programs(0) - 1 - tl.program_id(0), C, WIDTH)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    vector = group * C + channel
    center = tl.load(mean + vector, mask=known, other=0)
    low = load_or(remainder, vector, known, 0.0, STATISTIC)
    spread = tl.load(variance + vector, mask=known, other=1)
    inverse = inverse_of(spread, epsilon, STATISTIC)
    slope = inverse * load_or(scale, vector, known, 1.0, STATISTIC)
    shift = load_or(offset, vector, known, 0.0, STATISTIC)
    if partial is not None:
        sums, products = summed(partial, vector, known, G * C, splits, low, inverse, SPLITS)
        sums, products = sums.to(STATISTIC), products.to(STATISTIC)
        if split == 0:
            tl.store(sum_dy + vector, sums, mask=known)
            tl.store(sum_dy_xh + vector, products, mask=known)
    else:
        sums = tl.load(sum_dy + vector, mask=known, other=0)
        products = tl.load(sum_dy_xh + vector, mask=known, other=0)
    if not FROZEN:
        n = tl.load(count + group)
        alive = load_or(live, vector, known, 1.0, STATISTIC)
        share = tl.where(n == 0, 0.0, alive / tl.where(n == 0, 1.0, n))
        part = share * inverse * products
        rest = tl.fma(-low, part, share * sums)
        # the sums of a group that is not live may be anything
        part, rest = tl.where(share == 0, 0.0, part), tl.where(share == 0, 0.0, rest)

    first, last = span(split, per_split, tiles)
    for back in range(last - first):
        tile = last - 1 - back
        row, position, inside = place(tile, rows, D, ROWS, LANES, WIDTH, FULL)
        at = offsets(row, position, group, channel, G, B, C, D, GROUPED)
        there = among(inside, known, WIDTH, FULL)
        value = loaded(x + at, there, STATISTIC, FULL, "evict_first")
        d = loaded(dy + at, there, STATISTIC, FULL, "evict_first")
        excluded = None
        if weights is not None:
            weight = load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD)
            excluded = (weight == 0) & ~is_finite(value)
        d = passed(d, y, at, there, value, center, low, slope, shift, excluded, RELU, FULL)
        if d_residual is not None:
            store(d_residual + at, d, there, FULL)
        if not FROZEN:
            # where nothing depends on x, an x that is not finite has no part in dx
            path = tl.where(part == 0, rest, tl.fma(value - center, part, rest))
            if weights is not None:
                path = tl.where(weight == 0, 0.0, weight * path)
            d -= path
        out = d * slope
        if weights is not None:
            out = tl.where(excluded, 0.0, out)
        store(dx + at, out, there, FULL)
