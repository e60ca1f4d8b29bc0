"""How exact float32 is, far from zero: the composite path, under every compiler.

Compilers like to undo subtractions. keras-team/keras#20337 and pytorch/pytorch#30934 are of this
kind: Keras 3.15 is NaN from |mean| / std = 1e4 on PyTorch, and off by 1e-2 elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import engines
import reference
from strategies import call_on

RATIOS = (0.0, 10.0, 1e2, 1e3, 1e4, 1e5)  # |mean| / standard deviation
LAYOUTS = {
    "channels last": ((100_000, 3), -1),
    "channels last, odd": ((77_777, 3), -1),
    "channels first": ((50, 3, 2_000), 1),
    "channels first, odd": ((7, 3, 11_111), 1),
}
BAR = {"y": 1e-5, "dx": 1e-5, "gamma": 1e-5, "beta": 1e-5, "moving_variance": 1e-4}


def errors(step: Any, x: np.ndarray, options: dict[str, Any], **given: Any) -> dict[str, float]:
    """How far a step is from the reference: y absolutely, the rest relative to the largest."""
    call = call_on(np.random.default_rng(1), x, **options)
    call.parameters["gamma"] = np.ones_like(call.parameters["gamma"])
    got = step(x, call.parameters, call.state, dy=call.dy, **given)
    options = {name: value for name, value in options.items() if name != "fused"}
    expected = reference.batch_norm(
        x.astype("float64"), call.parameters, call.state, training=True, dy=call.dy,
        **options, **given,
    )  # fmt: skip

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    return {
        "y": float(np.abs(got["y"] - expected.y).max()),
        "dx": relative(got["dx"], expected.dx),
        "moving_variance": float(
            np.abs(got["state"]["moving_variance"] / expected.state["moving_variance"] - 1).max()
        ),
        **{name: relative(got[name], expected.gradients[name]) for name in ("gamma", "beta")},
    }


def assert_within_the_bar(measured: dict[str, float]) -> None:
    beyond = {name: error for name, error in measured.items() if not error <= BAR[name]}
    assert not beyond


def inputs(shape: tuple[int, ...], ratio: float) -> np.ndarray:
    return np.random.default_rng(0).normal(ratio, 1.0, shape).astype("float32")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_large_mean_costs_no_digits(engine: engines.Engine, layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    options = {"axis": axis, "momentum": 0.0, "fused": False}
    for mode in engine.modes:
        step = engines.stepper(engine, mode, training=True, **options)
        for ratio in RATIOS:
            measured = errors(step, inputs(shape, ratio), options)
            beyond = {name: e for name, e in measured.items() if not e <= BAR[name]}
            assert not beyond, (mode, ratio)


@pytest.mark.parametrize("name", ["masked", "renorm", "ghost"])
def test_a_large_mean_costs_no_digits_in_other_modes(engine: engines.Engine, name: str) -> None:
    shape, axis = LAYOUTS["channels first"]
    x = inputs(shape, 1e4)
    options: dict[str, Any] = {"axis": axis, "momentum": 0.0, "fused": False}
    given = {}
    if name == "masked":
        given["mask"] = np.random.default_rng(2).random((50, 2_000)) < 0.7
    elif name == "ghost":
        options["virtual_batch_size"] = 10
    for mode in engine.modes:
        if name == "renorm":  # clipped to plain normalization, times a little
            options |= {"renorm": True, "renorm_clipping": {"rmax": 1.1, "rmin": 0.9, "dmax": 0.1}}
        step = engines.stepper(engine, mode, training=True, **options)
        assert_within_the_bar(errors(step, x, options, **given))


def test_float16_sums_more_values_than_it_can_count(engine: engines.Engine) -> None:
    """65504 is the largest float16: sums and counts beyond it must not be float16."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (70_001, 2)).astype("float16")
    call = call_on(np.random.default_rng(1), x, momentum=0.0)
    expected = reference.batch_norm(
        x, call.parameters, call.state, training=True, dy=call.dy, momentum=0.0
    )
    for mode in engine.modes[:2]:
        step = engines.stepper(engine, mode, training=True, momentum=0.0)
        got = step(x, call.parameters, call.state, dy=call.dy, dtype="float16")
        for name in ("moving_mean", "moving_variance"):
            np.testing.assert_allclose(got["state"][name], expected.state[name], rtol=1e-5)
        np.testing.assert_allclose(got["y"], expected.y, atol=5e-3)
        np.testing.assert_allclose(got["gamma"], expected.gradients["gamma"], rtol=1e-4)


def test_a_constant_channel_far_from_zero_has_no_variance(engine: engines.Engine) -> None:
    x = np.full((1000, 2), 12345.678, "float32")
    call = call_on(np.random.default_rng(1), x, momentum=0.0)
    for mode in engine.modes[:2]:
        step = engines.stepper(engine, mode, training=True, momentum=0.0)
        got = step(x, call.parameters, call.state, dy=call.dy)
        np.testing.assert_allclose(got["state"]["moving_variance"], 0, atol=1e-6)
        beta = np.broadcast_to(call.parameters["beta"], x.shape)
        np.testing.assert_allclose(got["y"], beta, atol=1e-3)
