"""How a program walks x, and what every kernel does alike.

x is contiguous `[A, G, B, C, D]`; a program has some channels of one group and a split of their
values. Its rows are the pairs (a, b), `rows` in number. A tile is `[ROWS, LANES]` of it:

    by rows      one channel, and the lanes are positions in D
    by columns   D is 1, and the lanes are channels

WIDTH channels are a program's: LANES by columns, 1 by rows. A vector of theirs is `[1, WIDTH]`.
Offsets have 64 bits. What a kernel does not need is None, which Triton compiles away.
"""

import triton
import triton.language as tl


@triton.jit
def mine(number, C, WIDTH: tl.constexpr):
    """The group of the program of this number, its channels `[1, WIDTH]`, and which there are."""
    blocks = tl.cdiv(C, WIDTH)
    group = tl.full((), 0, tl.int64) + number // blocks
    channel = (number % blocks) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return group, channel, channel < C


@triton.jit
def place(tile, rows, D, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """A tile's rows `[ROWS, 1]`, its positions in D, and which of these there are."""
    tile = tl.full((), 0, tl.int64) + tile
    if WIDTH == LANES:  # by columns, where D is 1
        row = tile * ROWS + tl.arange(0, ROWS)[:, None]
        position = tl.zeros((1, 1), tl.int64)
    else:
        across = tl.cdiv(D, LANES)
        row = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
        position = (tile % across) * LANES + tl.arange(0, LANES)[None, :]
    return row, position, (row < rows) & (position < D)


@triton.jit
def offsets(row, position, group, channel, G, B, C, D, GROUPED: tl.constexpr):
    """Where the elements of a tile are in x."""
    if GROUPED:
        a = row // B
        row = (a * G + group) * B + (row - a * B)
    return (row * C + channel) * D + position


@triton.jit
def load_weights(weights, row, position, inside, group, B, WA, WG, WB, WD):
    """The weights of a tile, of these strides: by columns `[ROWS, 1]`, one for all channels."""
    a = row // B
    at = a * WA + group * WG + (row - a * B) * WB + position * WD
    return tl.load(weights + at, mask=inside, other=0)


@triton.jit
def total(values, WIDTH: tl.constexpr):
    """The sum of a tile over what is no channel, in float64; `[1, WIDTH]`."""
    values = tl.sum(values, axis=0, keep_dims=True)
    if WIDTH == 1:
        values = tl.sum(values, axis=1, keep_dims=True)
    return values.to(tl.float64)


@triton.jit
def is_finite(values):
    return values - values == 0


@triton.jit
def load_or(pointer, at, known, otherwise: tl.constexpr, LIKE: tl.constexpr):
    """A vector that may be absent."""
    if pointer is None:
        vector = tl.full(at.shape, otherwise, LIKE)
    else:
        vector = tl.load(pointer + at, mask=known, other=otherwise)
    return vector


@triton.jit
def inverse_of(variance, epsilon, STATISTIC: tl.constexpr):
    """1 / sqrt(variance + epsilon), and 0 where that would divide by zero."""
    square = variance + tl.full((), epsilon, tl.float64).to(STATISTIC)
    some = square != 0
    square = tl.where(some, square, 1.0)
    if tl.float64 == STATISTIC:
        inverse = 1.0 / tl.sqrt(square)
    else:
        inverse = tl.div_rn(tl.full(square.shape, 1.0, STATISTIC), tl.sqrt_rn(square))
    return tl.where(some, inverse, 0.0)


@triton.jit
def standardized(value, center, remainder, slope, shift):
    """(value - center - remainder) * slope + shift: y before a residual and the activation.

    The one expression that both ways share: where ReLU passes a derivative on is recomputed by it,
    and never saved.
    """
    return tl.fma(value - center, slope, tl.fma(-remainder, slope, shift))


@triton.jit
def filled(tile, rows, D, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """How many values of each channel a tile has, in float64."""
    tile = tl.full((), 0, tl.int64) + tile
    if WIDTH == LANES:
        n = tl.minimum(rows - tile * ROWS, ROWS)
    else:
        across = tl.cdiv(D, LANES)
        n = tl.minimum(rows - (tile // across) * ROWS, ROWS)
        n *= tl.minimum(D - (tile % across) * LANES, LANES)
    return n.to(tl.float64)
