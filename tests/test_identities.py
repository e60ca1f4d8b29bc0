"""What must be equal to what, whatever the values: on every framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines
from strategies import call_on, thorough

SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = 10
LAST, FIRST = ((8, 4, 3), -1), ((8, 3, 4), 1)
LAYOUTS = [LAST, FIRST, ((4, 4, 4, 4), 1), ((4, 4, 4, 4), -1), ((6, 1), -1), ((6, 1, 4), 1)]
MODES = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.5, "dmax": 0.3}},
    "unbiased and debiased": {"unbiased_moving_variance": True, "zero_debias": "both"},
}


def assert_same_state(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def assert_same_vectors(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("gamma", "beta"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(MODES))
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
def test_masked_rows_are_gone(
    engine: engines.Engine, shape: tuple[int, ...], axis: int, name: str
) -> None:
    step = engines.stepper(engine, engine.quick, training=True, axis=axis, **MODES[name])
    kept = np.arange(shape[0]) % 4 != 1  # a fixed number, so that nothing is compiled again

    @thorough(EXAMPLES)
    @given(SEEDS, st.sampled_from([0.0, np.nan, np.inf, 1e30]))
    def holds(seed: int, filling: float) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.permutation(kept)
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        x[~mask] = filling
        call = call_on(rng, x, axis=axis, **MODES[name])
        call.dy[~mask] = 0
        got = step(x, call.parameters, call.state, dy=call.dy, mask=mask)
        expected = step(x[mask], call.parameters, call.state, dy=call.dy[mask])
        assert_same_state(got["state"], expected["state"])
        assert_same_vectors(got, expected)
        for one in ("y", "dx"):
            np.testing.assert_allclose(got[one][mask], expected[one], atol=2e-5)
        np.testing.assert_array_equal(got["dx"][~mask], 0)
        assert np.isfinite(got["y"]).all()

    holds()


@pytest.mark.parametrize("name", list(MODES))
@pytest.mark.parametrize(("shape", "axis"), [LAST, FIRST])
def test_weight_two_is_the_row_twice(
    engine: engines.Engine, shape: tuple[int, ...], axis: int, name: str
) -> None:
    step = engines.stepper(engine, engine.quick, training=True, axis=axis, **MODES[name])

    @thorough(EXAMPLES)
    @given(SEEDS)
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        call = call_on(rng, x, axis=axis, **MODES[name])
        weights = rng.permutation(np.array([2, 2, 2, 1, 1, 1, 1, 1], "float32"))
        rows = np.repeat(np.arange(8), weights.astype(int))
        share = (call.dy / weights.reshape(8, 1, 1))[rows]  # the loss of a row, over its copies
        got = step(x, call.parameters, call.state, dy=call.dy, batch_weights=weights)
        expected = step(x[rows], call.parameters, call.state, dy=share)
        assert_same_state(got["state"], expected["state"])
        assert_same_vectors(got, expected)
        np.testing.assert_allclose(got["y"][rows], expected["y"], atol=2e-5)
        summed = np.zeros_like(got["dx"])
        np.add.at(summed, rows, expected["dx"])
        np.testing.assert_allclose(got["dx"], summed, atol=2e-5)

    holds()


@pytest.mark.parametrize("name", list(MODES))
@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3), -1), ((6, 3, 4), 1)])
def test_ghost_batches_are_a_loop_over_groups(
    engine: engines.Engine, shape: tuple[int, ...], axis: int, name: str
) -> None:
    options = {"training": True, "axis": axis, **MODES[name]}
    ghost = engines.stepper(engine, engine.quick, virtual_batch_size=2, **options)
    alone = engines.stepper(engine, engine.quick, **options)

    @thorough(EXAMPLES)
    @given(SEEDS)
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(1.0, 2.0, shape).astype("float32")
        call = call_on(rng, x, axis=axis, **MODES[name])
        weights = rng.uniform(0.5, 2, 6).astype("float32")
        got = ghost(x, call.parameters, call.state, dy=call.dy, batch_weights=weights)
        parts = []
        for j in range(3):  # with stride, as the originals do
            rows = slice(j, None, 3)
            given = {"dy": call.dy[rows], "batch_weights": weights[rows]}
            part = alone(x[rows], call.parameters, call.state, **given)
            parts.append(part)
            for one in ("y", "dx"):
                np.testing.assert_allclose(got[one][rows], part[one], atol=2e-5)
        for one in ("gamma", "beta"):
            np.testing.assert_allclose(got[one], sum(p[one] for p in parts), rtol=1e-4, atol=1e-4)
        if name == "plain":  # averages of the groups, by their weight
            shares = [weights[j::3].sum() / weights.sum() for j in range(3)]
            for one in ("moving_mean", "moving_variance"):
                average = sum(s * p["state"][one] for s, p in zip(shares, parts, strict=True))
                np.testing.assert_allclose(got["state"][one], average, rtol=1e-5, atol=1e-5)

    holds()


def test_ghost_batches_of_the_whole_batch_are_none(engine: engines.Engine) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype("float32")
    call = call_on(rng, x)
    got, expected = (
        engines.stepper(engine, engine.quick, training=True, virtual_batch_size=size)(
            x, call.parameters, call.state, dy=call.dy
        )
        for size in (6, None)
    )
    np.testing.assert_allclose(got["dx"], expected["dx"], atol=1e-6)
    assert_same_state(got["state"], expected["state"])


@pytest.mark.parametrize("name", [*MODES, "ghost"])
def test_several_axes_are_one_transposed_axis(engine: engines.Engine, name: str) -> None:
    options = MODES.get(name, {"virtual_batch_size": 2}) | {"training": True}
    several = engines.stepper(engine, engine.quick, axis=[3, 1], **options)
    single = engines.stepper(engine, engine.quick, axis=-1, **options)

    @thorough(EXAMPLES)
    @given(SEEDS)
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(1.0, 2.0, (4, 2, 5, 3)).astype("float32")
        call = call_on(rng, x, axis=[1, 3], **MODES.get(name, {}))
        got = several(x, call.parameters, call.state, dy=call.dy)

        def flat(value: np.ndarray) -> np.ndarray:
            return value.reshape(-1) if value.ndim else value

        def moved(value: np.ndarray) -> np.ndarray:
            return value.transpose(0, 2, 1, 3).reshape(4, 5, 6)

        expected = single(
            moved(x),
            {key: flat(value) for key, value in call.parameters.items()},
            {key: flat(value) for key, value in call.state.items()},
            dy=moved(call.dy),
        )
        for one in ("y", "dx"):
            np.testing.assert_allclose(moved(got[one]), expected[one], atol=2e-5)
        for key, value in expected["state"].items():
            np.testing.assert_allclose(flat(got["state"][key]), value, rtol=1e-5, atol=1e-5)
        assert got["state"]["moving_mean"].shape == got["gamma"].shape == (1, 2, 1, 3)

    holds()


@pytest.mark.parametrize("name", list(MODES))
def test_moving_statistics_in_training_are_inference_with_live_gradients(
    engine: engines.Engine, name: str
) -> None:
    options = MODES[name]
    frozen = engines.stepper(engine, engine.quick, training=True, statistics="moving", **options)
    inference = engines.stepper(engine, engine.quick, training=False, **options)
    training = engines.stepper(engine, engine.quick, training=True, **options)

    @thorough(EXAMPLES)
    @given(SEEDS)
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(1.0, 2.0, (6, 3)).astype("float32")
        call = call_on(rng, x, **options)
        got = frozen(x, call.parameters, call.state, dy=call.dy)
        expected = inference(x, call.parameters, call.state, dy=call.dy)
        for one in ("y", "dx", "gamma", "beta"):
            np.testing.assert_allclose(got[one], expected[one], atol=1e-5)
        assert_same_state(
            got["state"], training(x, call.parameters, call.state, dy=call.dy)["state"]
        )

    holds()


def test_a_pooled_variance_does_not_depend_on_the_ghost_batches(engine: engines.Engine) -> None:
    """The same values, in groups of other sizes, are the same moments."""
    options = {"training": True, "momentum": 0.0, "pooled_moving_variance": True}
    sizes = (1, 2, 3, 6)
    steps = [
        engines.stepper(engine, engine.quick, virtual_batch_size=size, **options) for size in sizes
    ]

    @thorough(EXAMPLES)
    @given(SEEDS)
    def holds(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(100.0, 2.0, (6, 4, 3)).astype("float32")
        call = call_on(rng, x)
        weights = rng.uniform(0.5, 2, (6, 4)).astype("float32")
        states = [
            step(x, call.parameters, call.state, batch_weights=weights)["state"] for step in steps
        ]
        for state in states[1:]:
            assert_same_state(state, states[0])

    holds()


def test_the_order_of_rows_does_not_matter(engine: engines.Engine) -> None:
    step = engines.stepper(engine, engine.quick, training=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype("float32")
    call, order = call_on(rng, x), rng.permutation(6)
    got = step(x[order], call.parameters, call.state, dy=call.dy[order])
    expected = step(x, call.parameters, call.state, dy=call.dy)
    np.testing.assert_allclose(got["dx"], expected["dx"][order], atol=1e-6)
    assert_same_state(got["state"], expected["state"])
