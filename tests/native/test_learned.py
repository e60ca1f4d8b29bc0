"""What the kernels learn about a machine can be read, and turned off."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest

CALLS = """
import ctypes
import numpy as np
from batchnorm._native.library import learned, load

dims = (ctypes.c_int64 * 5)(1, 1, 8192, 64, 1)
x, y, one = np.ones((8192, 64), "float32"), np.zeros((8192, 64), "float32"), np.ones(64, "float32")
pointer = lambda array: array.ctypes.data
for _ in range(12):
    code = load().bn_standardize(
        0, dims, pointer(x), None, None, pointer(one), None, pointer(one), 0.0, None, None, 0,
        pointer(y),
    )
    assert code == 0
print(learned())
"""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one way only: no stores around the cache"
)
def test_what_was_learned_is_a_line_for_each_kind_of_call(python: Callable[..., str]) -> None:
    (line,) = python(CALLS).split("\n")[:-2]
    assert line.startswith("standardize, float32, columns from ")
    assert line.endswith(" times")


def test_nothing_is_learned_where_that_is_off(python: Callable[..., str]) -> None:
    assert python(CALLS, BATCHNORM_TUNE="off").strip() == ""
