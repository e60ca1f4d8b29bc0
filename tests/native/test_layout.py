"""How a call is cut into programs and tiles on a GPU: everything once, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from batchnorm._native.triton import layout as layouts
from batchnorm._native.triton.layout import layout

SIZES = [
    (1, 1, 1, 1, 1), (1, 1, 37, 5, 1), (5, 1, 1, 3, 11), (3, 2, 4, 3, 1), (3, 2, 2, 3, 7),
    (2, 1, 1, 3, 5000), (1, 1, 20_000, 33, 1), (64, 1, 1, 2, 49), (2, 7, 300, 2, 3),
]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bytes_each", [2, 4, 8])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_value_is_in_one_tile_of_one_split(
    sizes: tuple, bytes_each: int, weighted: bool
) -> None:
    how = layout(sizes, bytes_each, weighted)
    a, g, b, c, d = sizes
    seen = np.zeros((a * b, d), int)
    rows_full = lanes_full = True
    across = 1 if d == 1 else -(-d // how.LANES)
    for split in range(how.splits):
        tiles = range(split * how.per_split, min((split + 1) * how.per_split, how.tiles))
        assert len(tiles) > 0
        for tile in tiles:
            row = tile // across * how.ROWS
            position = 0 if d == 1 else tile % across * how.LANES
            width = 1 if d == 1 else how.LANES
            seen[row : row + how.ROWS, position : position + width] += 1
            rows_full &= row + how.ROWS <= a * b
            lanes_full &= d == 1 or position + how.LANES <= d
    assert (seen == 1).all()
    lanes_full &= d > 1 or c % how.LANES == 0
    assert how.constants["FULL"] == rows_full + 2 * lanes_full
    together = d if d > 1 else c
    assert how.constants["VECTOR"] == max(v for v in (1, 2, 4, 8, 16) if together % v == 0)
    assert how.programs == g * -(-c // how.WIDTH)
    tile = (layouts.BY_COLUMNS if d == 1 else layouts.BY_ROWS)[bytes_each] >> weighted
    if d > 1 and how.constants["VECTOR"] * bytes_each < 16:  # a thread reads less at once
        tile = min(tile, layouts.BY_ROWS[4] >> weighted)
    if tile != how.ROWS * how.LANES:  # no more rows than there are
        assert how.ROWS // 2 < a * b <= how.ROWS
    assert how.warps == (layouts.WARPS if d == 1 else layouts.WARPS_BY_ROWS)
    assert (how.LANES if d == 1 else 1) == how.WIDTH
    assert how.splits <= layouts.MOST
    assert min(how.splits, 64 >> weighted) <= how.SPLITS <= 64


def test_a_large_input_fills_a_gpu_and_a_small_one_is_not_crumbled() -> None:
    for sizes in ((256, 1, 1, 64, 3136), (1, 1, 256 * 3136, 64, 1)):
        how = layout(sizes, 2)
        assert 256 <= how.programs * how.splits <= 2 * layouts.PROGRAMS
        assert how.ROWS * how.LANES == 4096
        assert how.constants["FULL"] == 3
    assert layout((2, 1, 1, 3, 5), 4).splits == 1


@pytest.mark.parametrize(
    ("d", "lanes"), [(3136, 64), (196, 256), (49, 64), (2, 2), (3, 4), (50_000, 512), (65, 128)]
)
def test_rows_are_read_in_long_pieces_that_are_nearly_full(d: int, lanes: int) -> None:
    assert lanes == layout((64, 1, 1, 8, d), 2).LANES
