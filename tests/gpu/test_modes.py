"""Every mode, type and layout through the GPU kernels, against the reference in float64."""

from __future__ import annotations

from typing import Any

import interpreted

interpreted.skip_without_triton()

import numpy as np
import pytest

from fused_calls import BARS, errors
from gpu_calls import CASES, ROUNDING, check, check_sizes


@pytest.mark.usefixtures("gpu", "small")
@pytest.mark.parametrize(("mode", "layout", "dtype"), CASES)
def test_the_kernels_give_the_reference(
    torch_engine: Any, mode: str, layout: str, dtype: str
) -> None:
    check(torch_engine, mode, layout, dtype)


@pytest.mark.usefixtures("gpu", "small")
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("layout", ["last", "first"])
def test_relu_in_the_same_kernels(torch_engine: Any, layout: str, dtype: str) -> None:
    for mode in ("plain", "weights"):
        check(torch_engine, mode, layout, dtype, "relu")


@pytest.mark.usefixtures("gpu", "small")
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 3), -1), ((1, 3, 1), 1), ((0, 3), -1), ((2, 0, 3), -1), ((2, 3, 0), 1), ((4, 0), -1),
        ((2, 0, 5), 1), ((257, 3), -1), ((3, 5, 67), 1), ((5, 29, 2), 1), ((40, 33), -1), ((7,), 0),
        ((0,), 0), ((3, 1, 1), 1),
    ],
)  # fmt: skip
def test_sizes_that_are_odd_one_or_none(torch_engine: Any, shape: Any, axis: Any) -> None:
    check_sizes(torch_engine, shape, axis)


@pytest.mark.usefixtures("small")
def test_tiles_that_are_full_by_half_or_not(
    gpu: Any, torch_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel need not ask, and how many elements it reads at once."""
    found: set[tuple[bool, int, int]] = set()
    real = gpu.launch

    def launch(kernel: Any, *operands: Any, **constants: Any) -> None:
        if "FULL" in constants:
            by_rows = constants["WIDTH"] == 1
            found.add((by_rows, constants["FULL"], constants["VECTOR"]))
        real(kernel, *operands, **constants)

    monkeypatch.setattr(gpu, "launch", launch)
    for shape, axis in (
        ((64, 8), -1), ((65, 8), -1), ((64, 6), -1), ((65, 5), -1),
        ((8, 3, 32), 1), ((9, 3, 32), 1), ((8, 3, 36), 1), ((9, 3, 35), 1),
    ):  # fmt: skip
        check_sizes(torch_engine, shape, axis)
    assert {one[:2] for one in found} == {(way, full) for way in (True, False) for full in range(4)}
    assert {vector for _, _, vector in found} == {1, 2, 4, 8, 16}


# As they are on a GPU: tiles of 2048 numbers, several of them.
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", ["plain", "weights", "ghost"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((9_001, 5), -1), ((12, 3, 1_501), 1)], ids=["last", "first"]
)
def test_a_large_mean_costs_no_digits(torch_engine: Any, shape: Any, axis: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"axis": axis}
    if mode == "ghost":
        options["virtual_batch_size"] = {9_001: 9_001, 12: 4}[shape[0]]
    weights = {"batch_weights": rng.uniform(0.5, 2, shape[0]).astype("float32")}
    for ratio in (0.0, 1e4, 1e5) if mode == "plain" else (1e5,):
        x = rng.normal(ratio, 1.0, shape).astype("float32")
        found = errors(torch_engine, x, weights if mode == "weights" else {}, **options)
        assert {name: e for name, e in found.items() if not e <= BARS[name]} == {}, ratio


@pytest.mark.usefixtures("gpu")
def test_a_batch_that_begins_far_from_the_rest_costs_no_digits(torch_engine: Any) -> None:
    """The first tile's mean is the first center: here the first sample is nothing but zeros."""
    x = np.random.default_rng(0).normal(1e4, 1.0, (12, 3, 1_501)).astype("float32")
    x[0] = 0
    found = errors(torch_engine, x, {}, axis=1)
    assert {name: e for name, e in found.items() if not e <= BARS[name]} == {}
