"""Every mode, type and layout through the GPU kernels, against the reference in float64."""

from __future__ import annotations

from typing import Any

import interpreted

interpreted.skip_without_triton()

import numpy as np
import pytest

from fused_calls import BARS, errors, rounded, step, truth
from strategies import call_on

ROUNDING = {"float64": 1e-11, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
RENORM = {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "renorm": RENORM,
    "ghost": {"virtual_batch_size": 3},
    "chunks": {"virtual_batch_size": 3, "ghost_order": "chunks"},
    "mask": {},
    "weights": {},
    "adjustment": {"adjustment": lambda shape: (np.float32(1.25), np.float32(-0.5))},
    "frozen": {"statistics": "moving"},
    "inference": {"training": False},
    "together": {**RENORM, "virtual_batch_size": 3, "unbiased_moving_variance": True},
}
LAYOUTS = {"last": ((6, 19, 5), -1), "first": ((6, 5, 19), 1), "several": ((6, 3, 7, 2), [1, 3])}


def given(mode: str, shape: tuple[int, ...], axis: Any, rng: np.random.Generator) -> dict[str, Any]:
    axes = [one % len(shape) for one in (axis if isinstance(axis, list) else [axis])]
    free = [size for i, size in enumerate(shape) if i not in axes]
    if mode in ("mask", "together"):
        return {"mask": rng.random(free) < 0.6}
    if mode == "weights":
        return {"batch_weights": rng.uniform(0.2, 3, free[0]).astype("float32")}
    return {}


def check(engine: Any, mode: str, layout: str, dtype: str, activation: str | None = None) -> None:
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(3)
    x = rounded(rng.normal(size=shape) * 1.5 + 2, dtype)
    more = given(mode, shape, axis, rng)
    options = {"training": True, "axis": axis, "momentum": 0.5, "epsilon": 1e-2, **MODES[mode]}
    if "mask" in more and mode == "mask":  # what is masked may be anything
        left_out = ~more["mask"].reshape(
            [1 if i == axis % len(shape) else s for i, s in enumerate(shape)]
            if isinstance(axis, int)
            else [s if i in (0, 2) else 1 for i, s in enumerate(shape)]
        )
        x = np.where(left_out, np.nan, x)
    call = call_on(rng, x, given=more, **options)
    call.dy = rounded(call.dy.astype("float64"), dtype)
    expected = truth(call, activation)
    got = step(engine, call, dtype, fused=True, activation=activation)
    for name, value in expected.items():
        narrow = name in ("y", "dx") or dtype == "float64"
        bar = ROUNDING[dtype] if narrow else 1e-5
        scale = max(1.0, np.abs(value)[np.isfinite(value)].max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=bar * scale, err_msg=name)


# Every mode in float32 and bfloat16 by turns of the layout, and the other types by turns of all.
CASES = [
    (mode, layout, dtype)
    for i, mode in enumerate(MODES)
    for j, layout in enumerate(LAYOUTS)
    for dtype in (("float32", "bfloat16", "float64", "float16")[(i + j) % 4],)
]


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
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, shape).astype("float32")
    call = call_on(rng, x, training=True, axis=axis, momentum=0.5)
    expected = truth(call, None)
    got = step(torch_engine, call, "float32", fused=True)
    for name, value in expected.items():
        scale = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


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
