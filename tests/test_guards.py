"""One bad batch must not spoil a model: the state is, bit for bit, as if it had never come.

keras-team/keras#9646, pytorch/pytorch#1206: a NaN in one batch is a NaN in the moving statistics
for ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from strategies import random_parameters, random_state

SHAPE = (6, 4, 3)
MODES = {
    "plain": {},
    "renorm": {"renorm": True},
    "ghost": {"virtual_batch_size": 2},
    "debiased": {"zero_debias": "both"},
}
COUNTERS = ("num_updates", "skipped_updates")


def start(options: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(3)
    x = rng.normal(1.0, 2.0, SHAPE).astype("float32")
    return x, random_parameters(rng, (3,)), random_state(rng, (3,), options)


def assert_same(got: dict[str, Any], expected: dict[str, Any], channels: Any = slice(None)) -> None:
    """Bit for bit, but for the counters."""
    for name in set(expected) - set(COUNTERS):
        np.testing.assert_array_equal(got[name][channels], expected[name][channels], name)


@pytest.fixture(scope="module", params=["eager", "compiled"])
def steppers(engine: engines.Engine, request: pytest.FixtureRequest) -> Any:
    """Functions that are compiled once for all tests of a mode; eager ones come as they are."""
    made: dict[Any, list[Any]] = {}

    def make(**options: Any) -> list[Any]:
        key = tuple(sorted(options.items()))
        if key not in made:
            modes = engine.modes[:1] if request.param == "eager" else engine.modes[1:]
            made[key] = [engines.stepper(engine, mode, training=True, **options) for mode in modes]
        return made[key]

    return make


@pytest.mark.parametrize("name", list(MODES))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_channel_that_is_not_finite_keeps_its_state_and_no_other_does(
    steppers: Any, name: str, bad: float
) -> None:
    x, parameters, state = start(MODES[name])
    spoilt = x.copy()
    spoilt[2, 1, 1] = bad
    for step in steppers(**MODES[name]):
        clean = step(x, parameters, state)["state"]
        got = step(spoilt, parameters, state)["state"]
        assert_same(got, state, 1)
        assert_same(got, clean, [0, 2])
        np.testing.assert_array_equal(got["skipped_updates"] - state["skipped_updates"], [0, 1, 0])


@pytest.mark.parametrize("name", list(MODES))
def test_a_batch_without_weight_changes_no_statistic_and_trains_nothing(
    steppers: Any, name: str
) -> None:
    x, parameters, state = start(MODES[name])
    x[0] = np.nan
    weights = {"mask": np.ones(6, bool), "batch_weights": np.ones((6, 4), "float32")}
    for step in steppers(**MODES[name]):
        for gone in ("mask", "batch_weights"):
            given = weights | {gone: np.zeros_like(weights[gone])}
            got = step(x, parameters, state, **given)
            assert_same(got["state"], state)
            np.testing.assert_array_equal(
                got["state"]["skipped_updates"], state["skipped_updates"] + 1
            )
            np.testing.assert_array_equal(got["gamma"], np.zeros(3))
            np.testing.assert_array_equal(got["beta"], np.zeros(3))


def test_a_batch_without_weight_is_normalized_with_the_moving_statistics(
    engine: engines.Engine,
) -> None:
    x, parameters, state = start({})
    step = engines.stepper(engine, engine.quick, training=True)
    inference = engines.stepper(engine, engine.quick, training=False)
    got = step(x, parameters, state, mask=np.zeros(6, bool))
    np.testing.assert_allclose(got["y"], inference(x, parameters, state)["y"], atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "ghost"])
@pytest.mark.parametrize("shape", [(0, 4, 3), (6, 0, 3)])
def test_an_empty_batch_changes_no_statistic_and_trains_nothing(
    engine: engines.Engine, name: str, shape: tuple[int, ...]
) -> None:
    _, parameters, state = start(MODES[name])
    for mode in engine.modes:
        if mode == "eager" and engine.quick != "eager":
            continue
        step = engines.stepper(engine, mode, training=True, **MODES[name])
        got = step(np.zeros(shape, "float32"), parameters, state)
        assert got["y"].shape == got["dx"].shape == shape
        assert_same(got["state"], state)
        np.testing.assert_array_equal(got["state"]["skipped_updates"], state["skipped_updates"] + 1)
        np.testing.assert_array_equal(got["gamma"], np.zeros(3))
        np.testing.assert_array_equal(got["beta"], np.zeros(3))


def test_an_empty_ghost_batch_does_not_count(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    mask = np.ones(6, bool)
    mask[[0, 3]] = False  # group 0 of 3
    step = engines.stepper(engine, engine.quick, training=True, virtual_batch_size=2, momentum=0.0)
    got = step(x, parameters, state, mask=mask)["state"]
    groups = [x[[j, j + 3]].reshape(-1, 3).astype("float64") for j in (1, 2)]
    np.testing.assert_allclose(
        got["moving_variance"], np.mean([g.var(0) for g in groups], axis=0), rtol=1e-5
    )


def test_nan_is_written_where_it_should_propagate(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    x[2, 1, 1] = np.nan
    step = engines.stepper(engine, engine.quick, training=True, on_nonfinite="propagate")
    got = step(x, parameters, state)["state"]
    np.testing.assert_array_equal(np.isnan(got["moving_mean"]), [False, True, False])
    np.testing.assert_array_equal(got["skipped_updates"], state["skipped_updates"])


def test_an_empty_batch_propagates_nothing(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    step = engines.stepper(engine, engine.quick, training=True, on_nonfinite="propagate")
    assert_same(step(x, parameters, state, mask=np.zeros(6, bool))["state"], state)


MESSAGE = (
    "batch_norm: the batch must have a finite mean and variance; got NaN or infinity in at least "
    "one channel. Clean the input, or use on_nonfinite='skip' to leave such channels out of the "
    "moving statistics."
)


def test_nan_raises_at_once_when_asked_to(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    x[2, 1, 1] = np.nan
    with pytest.raises(FloatingPointError) as caught:
        engines.stepper(engine, training=True, on_nonfinite="raise")(x, parameters, state)
    assert str(caught.value) == MESSAGE


def test_nan_raises_at_run_time_in_compiled_functions(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    options = {"training": True, "on_nonfinite": "raise"}
    step = engines.stepper(engine, engine.modes[1], **options)
    step(x, parameters, state)  # nothing wrong yet
    x[2, 1, 1] = np.nan
    with pytest.raises(engine.errors) as caught:  # noqa: PT012 - JAX raises it while we wait
        step(x, parameters, state)
        engine.wait()
    assert MESSAGE.split("'")[0] in str(caught.value)  # TensorFlow escapes the quotes


def test_nan_in_inference_is_nobodys_business(engine: engines.Engine) -> None:
    x, parameters, state = start({})
    x[2, 1, 1] = np.nan
    step = engines.stepper(engine, engine.quick, on_nonfinite="raise")
    assert_same(step(x, parameters, state)["state"], state)


def test_a_constant_channel_without_epsilon_gives_the_offset(engine: engines.Engine) -> None:
    x = np.full((4, 3), 7.0, "float32")
    _, parameters, state = start({})
    step = engines.stepper(engine, engine.quick, training=True, epsilon=0.0)
    got = step(x, parameters, state)
    np.testing.assert_array_equal(got["y"], np.broadcast_to(parameters["beta"], (4, 3)))
    np.testing.assert_array_equal(got["dx"], np.zeros((4, 3)))
    np.testing.assert_array_equal(got["gamma"], np.zeros(3))


@pytest.mark.parametrize(
    ("options", "given"),
    [({"training": False}, {}), ({}, {"training": np.array(False)})],
    ids=["bool", "tensor"],
)
def test_inference_leaves_every_statistic_alone(
    engine: engines.Engine, options: dict[str, Any], given: dict[str, Any]
) -> None:
    x, parameters, state = start({"renorm": True})
    step = engines.stepper(engine, engine.quick, renorm=True, **options)
    got = step(x, parameters, state, **given)["state"]
    for name, value in state.items():
        np.testing.assert_array_equal(got[name], value)


def test_counters_are_optional(engine: engines.Engine) -> None:
    x, _, state = start({})
    kept = {name: value for name, value in state.items() if name not in COUNTERS}
    tensors = {name: engine.tensor(value) for name, value in kept.items()}
    _, new = batchnorm.batch_norm(engine.tensor(x), {}, tensors, training=True)
    assert set(new) == set(kept)
