"""How a program walks x, and what every kernel does alike.

x is contiguous `[A, G, B, C, D]`; a program has some channels of one group and a split of their
values. Its rows are the pairs (a, b), `rows` in number. A tile is `[ROWS, LANES]` of it:

    by rows      one channel, and the lanes are positions in D
    by columns   D is 1, and the lanes are channels

WIDTH channels are a program's: LANES by columns, 1 by rows. A vector of theirs is `[1, WIDTH]`.
Offsets have 64 bits; tiles are counted in 32, for a GPU divides 64 by some hundred instructions.
FULL says that every tile has all of its rows (1), its lanes (2), or both (3): what is known is not
asked of an element. A GPU's thread has seven registers for answers, and where they do not suffice
its loads wait for one another. What a kernel does not need is None, which Triton compiles away.
"""

import triton
import triton.language as tl


@triton.jit
def mine(number, C, WIDTH: tl.constexpr):
    """The group of the program of this number, its channels `[1, WIDTH]`, and which there are."""
    blocks = tl.cdiv(C, WIDTH)
    group = number // blocks
    channel = (number - group * blocks) * WIDTH + tl.arange(0, WIDTH)[None, :]
    return tl.full((), 0, tl.int64) + group, channel, channel < C


@triton.jit
def span(split, per_split, tiles):
    """The first tile of a split, and the one behind its last."""
    first = split * per_split
    return first, tl.minimum(first + per_split, tiles)


@triton.jit
def some_splits(start, at, known, vectors, splits, SPLITS: tl.constexpr):
    """Where the partial results of SPLITS splits are, from one on, and which of these there are."""
    split = start + tl.arange(0, SPLITS)[:, None]
    return split * vectors + at, known & (split < splits)


@triton.jit
def place(
    tile, rows, D, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr
):
    """A tile's rows `[ROWS, 1]`, its positions in D, and which of these there are."""
    down, across = corner(tile, D, ROWS, LANES, WIDTH)
    row = down + tl.arange(0, ROWS)[:, None]
    if WIDTH == LANES:
        position = tl.zeros((1, 1), tl.int64)
    else:
        position = across + tl.arange(0, LANES)[None, :]
    if FULL & 2:
        inside = row < rows
    elif FULL & 1:
        inside = position < D
    else:
        inside = (row < rows) & (position < D)
    return row, position, inside


@triton.jit
def corner(tile, D, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The first row of a tile, and its first position in D; by columns D is 1."""
    across = tl.full((), 0, tl.int64)
    if WIDTH == LANES:
        down = across + tile
    else:
        pieces = tl.cdiv(D, LANES)
        down = across + tile // pieces
        across += tile - tile // pieces * pieces
    return down * ROWS, across * LANES


@triton.jit
def among(inside, known, WIDTH: tl.constexpr, FULL: tl.constexpr):
    """Which elements of a tile there are: a program of one channel has no other."""
    if WIDTH != 1 and not FULL & 2:
        inside = inside & known
    return inside


@triton.jit
def loaded(pointer, there, LIKE: tl.constexpr, FULL: tl.constexpr, POLICY: tl.constexpr):
    """Elements as numbers of the statistics' type, 0 where there are none."""
    if FULL == 3:
        values = tl.load(pointer, eviction_policy=POLICY)
    else:
        values = tl.load(pointer, mask=there, other=0, eviction_policy=POLICY)
    return values.to(LIKE)


@triton.jit
def where_there(there, values, FULL: tl.constexpr):
    """The values, 0 where there is no element."""
    if FULL != 3:
        values = tl.where(there, values, 0.0)
    return values


@triton.jit
def store(pointer, values, there, FULL: tl.constexpr):
    """Writes a tile, which nobody will read soon."""
    values = values.to(pointer.dtype.element_ty)
    if FULL == 3:
        tl.store(pointer, values, eviction_policy="evict_first")
    else:
        tl.store(pointer, values, mask=there, eviction_policy="evict_first")


@triton.jit
def in_vectors(C, D, LANES: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """C and D, of whichever lies together in memory the compiler sees that VECTOR divides it."""
    if WIDTH == LANES:
        C = C // VECTOR * VECTOR
    else:
        D = D // VECTOR * VECTOR
    return C, D


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
    """How many values of each channel a tile has."""
    down, across = corner(tile, D, ROWS, LANES, WIDTH)
    n = tl.minimum(rows - down, ROWS)
    if WIDTH != LANES:
        n *= tl.minimum(D - across, LANES)
    return n
