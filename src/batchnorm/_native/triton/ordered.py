"""The kernels for launchers that know no absent operand and hand results last: operands, numbers,
results, constants.

Whatever is absent has something else in its place, and its bit in ABSENT, in the order of the
operands. Partial results of splits come as float32 `[2 * number]`, for a framework that may have
no float64: the memory is the same. C and D are constants: by them the compiler knows how wide a
load may be, which such launchers do not say of numbers.
"""

import triton
import triton.language as tl

from batchnorm._native.triton import backward, moments, remember, standardize


@triton.jit
def doubles(partial):
    """The pointer to partial results, as what they are."""
    return partial.to(tl.pointer_type(tl.float64), bitcast=True)


@triton.jit
def partial_moments(
    x, weights,
    rows, tiles, per_split, G, B, WA, WG, WB, WD,
    partial,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    moments.moments(
        x, None if ABSENT & 2 else weights, doubles(partial),
        rows, tiles, per_split, G, B, C, D, WA, WG, WB, WD,
        ROWS, LANES, WIDTH, CHUNK, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def merge(
    partial, G, splits,
    mean, remainder, variance, count,
    C: tl.constexpr, ABSENT: tl.constexpr,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    moments.merge(
        doubles(partial), mean, remainder, variance, count, G, C, splits, WIDTH, SPLITS, STATISTIC
    )


@triton.jit
def standardize_given(
    x, residual, weights, mean, remainder, variance, scale, offset,
    rows, tiles, per_split, splits, G, B, WA, WG, WB, WD, epsilon: tl.float64,
    y,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """With moments, which are read."""
    standardize.standardize(
        x, None if ABSENT & 2 else residual, None if ABSENT & 4 else weights, None,
        mean, None if ABSENT & 16 else remainder, variance, None,
        None if ABSENT & 64 else scale, None if ABSENT & 128 else offset, y,
        rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon,
        RELU, ROWS, LANES, WIDTH, SPLITS, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def standardize_merging(
    x, residual, weights, partial, scale, offset,
    rows, tiles, per_split, splits, G, B, WA, WG, WB, WD, epsilon: tl.float64,
    y, mean, remainder, variance, count,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """With partial moments, which become results."""
    standardize.standardize(
        x, None if ABSENT & 2 else residual, None if ABSENT & 4 else weights, doubles(partial),
        mean, remainder, variance, count,
        None if ABSENT & 16 else scale, None if ABSENT & 32 else offset, y,
        rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon,
        RELU, ROWS, LANES, WIDTH, SPLITS, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def partial_sums(
    x, dy, weights, mean, remainder, variance, scale, offset,
    rows, tiles, per_split, G, B, WA, WG, WB, WD, epsilon: tl.float64,
    partial,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    backward.backward_sums(
        x, dy, None, None if ABSENT & 4 else weights, doubles(partial),
        mean, None if ABSENT & 16 else remainder, variance,
        None if ABSENT & 64 else scale, None if ABSENT & 128 else offset,
        rows, tiles, per_split, G, B, C, D, WA, WG, WB, WD, epsilon,
        RELU, ROWS, LANES, WIDTH, CHUNK, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def merge_sums(
    partial, remainder, variance, G, splits, epsilon: tl.float64,
    sum_dy, sum_dy_xh,
    C: tl.constexpr, ABSENT: tl.constexpr,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    backward.merge_sums(
        doubles(partial), None if ABSENT & 2 else remainder, variance, sum_dy, sum_dy_xh,
        G, C, splits, epsilon, WIDTH, SPLITS, STATISTIC,
    )  # fmt: skip


@triton.jit
def backward_given(
    x, dy, weights, count, mean, remainder, variance, scale, offset, live, sum_dy, sum_dy_xh,
    rows, tiles, per_split, splits, G, B, WA, WG, WB, WD, epsilon: tl.float64,
    dx,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr,
    RELU: tl.constexpr, FROZEN: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """With the two sums, which are read."""
    backward.backward_input(
        x, dy, None, None if ABSENT & 4 else weights, None,
        None if ABSENT & 8 else count, mean, None if ABSENT & 32 else remainder, variance,
        None if ABSENT & 128 else scale, None if ABSENT & 256 else offset,
        None if ABSENT & 512 else live, sum_dy, sum_dy_xh, dx, None,
        rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon,
        RELU, FROZEN, ROWS, LANES, WIDTH, SPLITS, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def backward_merging(
    x, dy, weights, count, mean, remainder, variance, scale, offset, live, partial,
    rows, tiles, per_split, splits, G, B, WA, WG, WB, WD, epsilon: tl.float64,
    dx, sum_dy, sum_dy_xh,
    C: tl.constexpr, D: tl.constexpr, ABSENT: tl.constexpr,
    RELU: tl.constexpr, FROZEN: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
    GROUPED: tl.constexpr, FULL: tl.constexpr, VECTOR: tl.constexpr, STATISTIC: tl.constexpr,
):  # fmt: skip
    """With partial sums, which become results."""
    backward.backward_input(
        x, dy, None, None if ABSENT & 4 else weights, doubles(partial),
        None if ABSENT & 8 else count, mean, None if ABSENT & 32 else remainder, variance,
        None if ABSENT & 128 else scale, None if ABSENT & 256 else offset,
        None if ABSENT & 512 else live, sum_dy, sum_dy_xh, dx, None,
        rows, tiles, per_split, splits, G, B, C, D, WA, WG, WB, WD, epsilon,
        RELU, FROZEN, ROWS, LANES, WIDTH, SPLITS, GROUPED, FULL, VECTOR, STATISTIC,
    )  # fmt: skip


@triton.jit
def remembered(
    mean, remainder, variance, count, old_mean, old_variance, old_skipped, old_number,
    momentum: tl.float64,
    new_mean, new_variance, new_skipped, new_number,
    VECTORS: tl.constexpr, C: tl.constexpr, ABSENT: tl.constexpr,
    UNBIASED: tl.constexpr, PROPAGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    remember.remember(
        mean, remainder, variance, count, old_mean, old_variance,
        None if ABSENT & 64 else old_skipped, None if ABSENT & 128 else old_number,
        new_mean, new_variance,
        None if ABSENT & 64 else new_skipped, None if ABSENT & 128 else new_number,
        VECTORS, C, momentum, UNBIASED, PROPAGATE, BLOCK,
    )  # fmt: skip
