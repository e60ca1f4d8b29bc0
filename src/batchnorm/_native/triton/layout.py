"""Which tiles and how many programs a call takes: by sizes alone, so that every device, and every
run, adds up in the same order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

WARPS = 8
REGISTERS = 128  # of a thread at most; without a limit the compiler spills to get down to 64
TILE = {2: 2048, 4: 2048, 8: 1024}  # elements, by bytes of one: 8 a thread, or 4
COLUMNS = 32  # channels of a program at most
PROGRAMS = 1024  # that a big input is split into: seven for each of an H100's processors
FEWEST = 4  # tiles of a program, where there are as many
SPLITS = (4, 32, 128)  # how many partial results the next kernel merges, rounded up to these
CHUNK = 8  # tiles whose sums stay in float32
NARROWEST, WIDEST = 64, 512  # lanes of a row, where it has as many
FULL = 0.9  # of these, where it can be
BLOCK = 256  # channels of a program of `remember`


class Layout(NamedTuple):
    """How one call walks `[A, G, B, C, D]`; the names are those of the kernels.

    `programs` by `splits` is the grid, `vectors` the length of a per-channel vector.
    """

    programs: int
    splits: int
    rows: int
    tiles: int
    per_split: int
    sizes: tuple[int, int, int, int]  # G, B, C, D
    ROWS: int
    LANES: int
    WIDTH: int
    SPLITS: int

    @property
    def vectors(self) -> int:
        return self.sizes[0] * self.sizes[2]

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, self.splits

    @property
    def constants(self) -> dict[str, int]:
        """Of every kernel of x."""
        grouped = self.sizes[0] > 1
        return {"ROWS": self.ROWS, "LANES": self.LANES, "WIDTH": self.WIDTH, "GROUPED": grouped}


@functools.lru_cache(maxsize=1024)
def layout(sizes: tuple[int, int, int, int, int], bytes_each: int) -> Layout:
    """The layout of an x of these sizes, none of them 0, and of elements of so many bytes."""
    a, g, b, c, d = sizes
    tile, rows = TILE[bytes_each], a * b
    if d == 1:
        lanes = width = min(_power(c), COLUMNS)
    else:
        lanes, width = _lanes(d, tile), 1
    programs = g * -(-c // width)
    height = tile // lanes
    tiles = -(-rows // height) * (1 if d == 1 else -(-d // lanes))
    splits = max(1, min(SPLITS[-1], -(-PROGRAMS // programs), tiles // FEWEST))
    per_split = -(-tiles // splits)
    splits = -(-tiles // per_split)
    merged = next(one for one in SPLITS if one >= splits)
    return Layout(
        programs, splits, rows, tiles, per_split, (g, b, c, d), height, lanes, width, merged
    )


def _power(size: int) -> int:
    """The smallest power of 2 that is not below a size."""
    return 1 << (size - 1).bit_length()


def _lanes(d: int, tile: int) -> int:
    """Lanes for rows of d elements: many, that are nearly full in the last piece of a row too."""
    most = min(max(_power(d), 2), tile, WIDEST)
    choices = [2**i for i in range(most.bit_length()) if 2**i >= min(NARROWEST, most)]
    filled = {lanes: d / (-(-d // lanes) * lanes) for lanes in choices}
    good = [lanes for lanes in choices if filled[lanes] >= FULL]
    return max(good) if good else max(choices, key=lambda lanes: (filled[lanes], lanes))


def strides(sizes: tuple[int, ...], own: Sequence[int] | None) -> tuple[int, int, int, int]:
    """Those of weights of these sizes in A, G, B and D, for `[A, G, B, C, D]`: 0 where one serves
    all, or where there are none.

    Raises:
        ValueError: a size of theirs is neither 1 nor the full one.
    """
    if own is None:
        return 0, 0, 0, 0
    full = (*sizes[:3], sizes[4])
    if any(size not in (1, of) for size, of in zip(own, full, strict=True)):
        raise ValueError(
            f"batchnorm kernels: weights must have the sizes {full} of A, G, B and D, or 1 "
            f"instead; got {tuple(own)}."
        )
    _, g, b, d = own
    steps = (g * b * d, b * d, d, 1)
    a, g, b, d = (0 if size == 1 else step for size, step in zip(own, steps, strict=True))
    return a, g, b, d
