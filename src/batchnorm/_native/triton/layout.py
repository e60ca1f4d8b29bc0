"""Which tiles and how many programs a call takes: by sizes alone, so that every device, and every
run, adds up in the same order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

WARPS = 8  # of a program that reads by columns, or no x
WARPS_BY_ROWS = 4
REGISTERS = 128  # of a thread at most; without a limit the compiler spills to get down to 64
# Elements of a tile, by bytes of one.
BY_COLUMNS = {2: 4096, 4: 4096, 8: 2048}
BY_ROWS = {2: 4096, 4: 2048, 8: 1024}
COLUMNS = 32  # channels of a program at most
PROGRAMS = 512  # that a big input is split into: four for each of an H100's processors
FEWEST = 2  # tiles of a program, where there are as many
MOST = 128  # splits, whose partial results the next kernel merges
SPLITS = (4, 32, 64)  # at a time as many of them
CHUNK = 32  # tiles whose sums stay in float32: as many numbers in each lane
NARROWEST, WIDEST = 64, 512  # lanes of a row, where it has as many
FILLED = 0.9  # of these, where it can be
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
    warps: int

    @property
    def vectors(self) -> int:
        return self.sizes[0] * self.sizes[2]

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, self.splits

    @property
    def constants(self) -> dict[str, int]:
        """Of every kernel of x."""
        g, _, c, d = self.sizes
        across = d if d > 1 else c
        full = (self.rows % self.ROWS == 0) + 2 * (across % self.LANES == 0)
        tile = {"ROWS": self.ROWS, "LANES": self.LANES, "WIDTH": self.WIDTH}
        return {**tile, "GROUPED": g > 1, "FULL": full, "VECTOR": _vector(across)}


@functools.lru_cache(maxsize=1024)
def layout(
    sizes: tuple[int, int, int, int, int], bytes_each: int, weighted: bool = False
) -> Layout:
    """The layout of an x of these sizes, none of them 0, and of elements of so many bytes.

    With weights tiles have half as many elements: each takes more registers.
    """
    a, g, b, c, d = sizes
    rows = a * b
    if d == 1:
        tile, warps = BY_COLUMNS[bytes_each] >> weighted, WARPS
        lanes = width = min(_power(c), COLUMNS)
    else:
        tile, warps = BY_ROWS[bytes_each] >> weighted, WARPS_BY_ROWS
        if _vector(d) * bytes_each < 16:  # more loads, which take more registers
            tile = min(tile, BY_ROWS[4] >> weighted)
        lanes, width = _lanes(d, tile), 1
    programs = g * -(-c // width)
    height = min(tile // lanes, _power(rows))
    tiles = -(-rows // height) * (1 if d == 1 else -(-d // lanes))
    splits = max(1, min(MOST, -(-PROGRAMS // programs), tiles // FEWEST))
    per_split = -(-tiles // splits)
    splits = -(-tiles // per_split)
    most = SPLITS[-1] >> weighted
    merged = next(one for one in SPLITS if one >= min(splits, most))
    return Layout(
        programs, splits, rows, tiles, per_split, (g, b, c, d), height, lanes, width, merged, warps
    )


def _power(size: int) -> int:
    """The smallest power of 2 that is not below a size."""
    return 1 << (size - 1).bit_length()


def _vector(size: int) -> int:
    """The largest power of 2, to 16, that divides a size."""
    return min(size & -size, 16)


def _lanes(d: int, tile: int) -> int:
    """Lanes for rows of d elements: many, that are nearly full in the last piece of a row too."""
    most = min(max(_power(d), 2), tile, WIDEST)
    choices = [2**i for i in range(most.bit_length()) if 2**i >= min(NARROWEST, most)]
    filled = {lanes: d / (-(-d // lanes) * lanes) for lanes in choices}
    for enough in (1, FILLED):
        if good := [lanes for lanes in choices if filled[lanes] >= enough]:
            return max(good)
    return max(choices, key=lambda lanes: (filled[lanes], lanes))


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
