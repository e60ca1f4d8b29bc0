"""What is remembered from batch to batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from batchnorm._options import Options
from batchnorm._statistics import initial_value, state_names
from strategies import initial, random_state

X = np.random.default_rng(4).normal(2.0, 3.0, (8, 3)).astype("float32")


def after(engine: engines.Engine, state: dict[str, Any] | None = None, **options: Any) -> Any:
    """The state after a batch, from a random one; and that one."""
    state = state or random_state(np.random.default_rng(9), (3,), options)
    step = engines.stepper(engine, engine.quick, training=True, **options)
    return step(X, {}, state)["state"], state


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ()),
        ({"renorm": True}, ("moving_stddev", "renorm_mean", "renorm_stddev")),
        ({"zero_debias": True}, ("biased_mean", "local_step")),
        ({"zero_debias": "both"}, ("biased_mean", "local_step", "biased_variance")),
        (
            {"zero_debias": "both", "renorm": True},
            (
                "moving_stddev",
                "renorm_mean",
                "renorm_stddev",
                "biased_mean",
                "local_step",
                "biased_stddev",
            ),
        ),
    ],
)
def test_each_mode_remembers_its_own_statistics(
    options: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert state_names(Options(**options)) == ("moving_mean", "moving_variance", *names)


def test_variances_and_deviations_start_at_one() -> None:
    names = state_names(Options(renorm=True, zero_debias="both"))
    ones = {name for name in names if initial_value(name) == 1.0}
    assert ones == {"moving_variance", "moving_stddev", "renorm_stddev"}


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"zero_debias": "both"}])
def test_momentum_zero_remembers_the_last_batch(
    engine: engines.Engine, options: dict[str, Any]
) -> None:
    new, _ = after(engine, momentum=0.0, **options)
    np.testing.assert_allclose(new["moving_mean"], X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["moving_variance"], X.var(0), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"zero_debias": "both"}])
def test_momentum_one_never_moves(engine: engines.Engine, options: dict[str, Any]) -> None:
    new, old = after(engine, momentum=1.0, **options)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_array_equal(new[name], old[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_momentum_may_be_a_tensor(engine: engines.Engine, dtype: str) -> None:
    options = {"renorm": True, "zero_debias": "both"}
    with engine.precision(dtype):
        momentum = engine.tensor(np.float32(0.25), dtype)
        new, _ = after(engine, momentum=momentum, renorm_momentum=momentum, **options)
    expected, _ = after(engine, momentum=0.25, renorm_momentum=0.25, **options)
    for name in ("moving_mean", "renorm_mean"):
        np.testing.assert_allclose(new[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_state_keeps_its_type(engine: engines.Engine, dtype: str) -> None:
    with engine.precision(dtype):
        x = engine.tensor(X)
        parameters, state = batchnorm.init(x)
        for name in ("moving_mean", "moving_variance"):
            state[name] = engine.ops.cast(state[name], dtype)
        _, new = batchnorm.batch_norm(x, parameters, state, training=True, momentum=0.5)
        for name, value in state.items():
            assert engine.ops.dtype(new[name]) == engine.ops.dtype(value)
        mean = engine.numpy(new["moving_mean"])
    np.testing.assert_allclose(mean, 0.5 * X.mean(0), rtol=1e-2)


def test_float64_statistics_do_not_round_the_momentum(engine: engines.Engine) -> None:
    """D35: the originals round 1 - momentum to float32."""
    with engine.precision("float64"):
        x = X.astype("float64")
        _, state = initial(engine, x)
        step = engines.stepper(engine, engine.quick, training=True, momentum=0.99)
        new = step(x, {}, state)["state"]
    np.testing.assert_allclose(new["moving_mean"], 0.01 * x.mean(0), rtol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 0.99999])
@pytest.mark.parametrize("steps", [1, 2, 300])
def test_debiased_steps_of_one_batch_are_the_batch(
    engine: engines.Engine, momentum: float, steps: int
) -> None:
    _, state = initial(engine, X, zero_debias="both")
    state["moving_mean"] += 5  # the initial value is discarded
    seen = -math.expm1((steps - 1) * math.log(momentum)) if momentum and steps > 1 else 1.0
    if steps > 1:
        state["local_step"] += steps - 1
        state["biased_mean"] += np.float32(seen) * X.mean(0)
        state["biased_variance"] += np.float32(seen) * X.var(0)
    new, _ = after(engine, state, zero_debias="both", momentum=momentum)
    np.testing.assert_allclose(new["moving_mean"], X.mean(0), rtol=1e-6)
    np.testing.assert_allclose(new["moving_variance"], X.var(0), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"renorm": True}])
def test_the_unbiased_variance_is_remembered_when_asked_for(
    engine: engines.Engine, options: dict[str, Any]
) -> None:
    new, _ = after(engine, momentum=0.0, unbiased_moving_variance=True, **options)
    np.testing.assert_allclose(new["moving_variance"], X.var(0, ddof=1), rtol=1e-5)


def test_ghost_batches_average_their_variances_or_pool_them(engine: engines.Engine) -> None:
    options = {"momentum": 0.0, "virtual_batch_size": 2}
    averaged, _ = after(engine, **options)
    pooled, _ = after(engine, pooled_moving_variance=True, **options)
    groups = [X[j::4].var(0) for j in range(4)]
    np.testing.assert_allclose(averaged["moving_variance"], np.mean(groups, 0), rtol=1e-5)
    np.testing.assert_allclose(pooled["moving_variance"], X.var(0), rtol=1e-5)


def test_an_assigned_variance_is_not_undone_by_renorm(engine: engines.Engine) -> None:
    """D18: the originals recompute the variance from the deviation they kept."""
    _, state = initial(engine, X, renorm=True)
    state["moving_variance"] = np.full(3, 9.0)
    new, _ = after(engine, state, renorm=True, momentum=0.99)
    assert np.all(new["moving_variance"] > 7.0)


def test_updates_are_counted(engine: engines.Engine) -> None:
    new, old = after(engine)
    assert new["num_updates"] == old["num_updates"] + 1
    np.testing.assert_array_equal(new["skipped_updates"], old["skipped_updates"])


@pytest.mark.parametrize("training", [True, False])
def test_update_statistics_decides_alone_what_is_remembered(
    engine: engines.Engine, training: bool
) -> None:
    state = random_state(np.random.default_rng(9), (3,), {})
    for update in (True, False):
        step = engines.stepper(engine, engine.quick, training=training, update_statistics=update)
        new = step(X, {}, state)["state"]
        assert (new["moving_mean"] != state["moving_mean"]).all() == update
