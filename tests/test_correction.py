"""Renorm's clipping and `adjustment`: what they may be, and what they may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from strategies import call_on
from test_batch_norm import assert_agree, by_reference

X = np.random.default_rng(0).normal(1.0, 2.0, (6, 4, 3)).astype("float32")


def refusal(engine: engines.Engine, state: dict[str, Any] | None = None, **options: Any) -> str:
    """The message of the error that a call ends with."""
    renorm = options.get("renorm", False)
    x = engine.tensor(X)
    parameters, start = batchnorm.init(x, renorm=renorm)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller compares the message
        batchnorm.batch_norm(x, parameters, state or start, training=True, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["number", "tensor", "per channel", "function", "none"])
def test_a_bound_may_come_in_any_form(engine: engines.Engine, kind: str) -> None:
    rmax: Any = np.full(3, 1.1) if kind == "per channel" else 1.1
    call = call_on(np.random.default_rng(3), X, renorm=True, training=True)
    call.options["renorm_clipping"] = {"rmax": None if kind == "none" else rmax}
    expected = by_reference(call)
    given = rmax
    if kind in ("tensor", "per channel"):
        given = engine.tensor(np.float32(rmax) if kind == "tensor" else rmax.astype("float32"))
    elif kind == "function":
        given = lambda step: 1.1 + 0.0 * step  # noqa: E731
    elif kind == "none":
        given = None
    step = engines.stepper(
        engine, engine.quick, renorm=True, training=True, renorm_clipping={"rmax": given}
    )
    assert_agree(step(X, call.parameters, call.state, dy=call.dy), expected)


def test_a_schedule_sees_the_number_of_updates(engine: engines.Engine) -> None:
    seen = []

    def schedule(step: Any) -> Any:
        seen.append(float(engine.numpy(step)))
        return 1.0 + 0.1 * step

    x = engine.tensor(X)
    parameters, state = batchnorm.init(x, renorm=True)
    for _ in range(3):
        _, state = batchnorm.batch_norm(
            x, parameters, state, training=True, renorm=True, renorm_clipping={"rmax": schedule}
        )
    assert seen == [0.0, 1.0, 2.0]


def test_a_schedule_needs_the_counter(engine: engines.Engine) -> None:
    state = batchnorm.init(engine.tensor(X), renorm=True)[1]
    del state["num_updates"]
    clipping = {"rmax": lambda step: 2.0}
    assert refusal(engine, state, renorm=True, renorm_clipping=clipping) == (
        "batch_norm: state must hold num_updates for a renorm_clipping that is a function of the "
        "step; got none. Start from batchnorm.init."
    )


@pytest.mark.parametrize("returned", [None, 1.0, (1.0,), (1.0, 0.0, 0.0), (None, 0.0), (1.0, "0")])
def test_an_adjustment_returns_a_pair(engine: engines.Engine, returned: Any) -> None:
    message = refusal(engine, adjustment=lambda shape: returned)
    assert message == f"batch_norm: adjustment must return (scale, bias); got {returned!r}."


@pytest.mark.parametrize("returned", [None, "3"])
def test_a_clipping_must_return_a_number(engine: Any, returned: Any) -> None:
    x = engine.tensor(np.ones((4, 3), "float32"))
    parameters, state = batchnorm.init(x, renorm=True)
    with pytest.raises(TypeError) as caught:
        batchnorm.batch_norm(
            x,
            parameters,
            state,
            training=True,
            renorm=True,
            renorm_clipping={"rmax": lambda step: returned},
        )
    assert str(caught.value) == (
        "batch_norm: renorm_clipping's rmax must return a number or a tensor for a step; got "
        f"{returned!r}."
    )


@pytest.mark.parametrize("shape", [(4,), (6, 4), (1, 6, 4, 3), (2, 1, 3)])
def test_an_adjustment_broadcasts_to_the_input(
    engine: engines.Engine, shape: tuple[int, ...]
) -> None:
    scale = np.ones(shape, "float32")
    assert refusal(engine, adjustment=lambda _: (scale, 0.0)) == (
        "batch_norm: adjustment must return values that broadcast to the input's shape (6, 4, 3); "
        f"got one of shape {shape}."
    )


def test_an_adjustment_is_given_the_shape(engine: engines.Engine) -> None:
    seen = []

    def adjustment(shape: Any) -> tuple[float, float]:
        seen.extend(int(size) for size in shape)
        return 1.0, 0.0

    x = engine.tensor(X)
    batchnorm.batch_norm(x, *batchnorm.init(x), training=True, adjustment=adjustment)
    assert seen == [6, 4, 3]


def test_an_adjustment_is_not_called_in_inference(engine: engines.Engine) -> None:
    def adjustment(shape: Any) -> Any:
        raise AssertionError

    x = engine.tensor(X)
    batchnorm.batch_norm(x, *batchnorm.init(x), adjustment=adjustment)


@pytest.mark.parametrize("shape", [(3,), (6, 1, 1), (6, 4, 3), ()])
def test_gradients_reach_what_an_adjustment_returns(
    engine: engines.Engine, shape: tuple[int, ...]
) -> None:
    dy = np.random.default_rng(1).normal(size=X.shape).astype("float32")
    x, upstream = engine.tensor(X), engine.tensor(dy)
    parameters, state = batchnorm.init(x)

    def loss(scale: Any, bias: Any) -> Any:
        y, _ = batchnorm.batch_norm(
            x, parameters, state, training=True, adjustment=lambda _: (scale, bias)
        )
        return engines.total(y * upstream), y

    scale, bias = (engine.tensor(np.full(shape, value, "float32")) for value in (1.0, 0.0))
    (_, y), grads = engine.gradients(loss, scale, bias)
    for product, got in zip((dy * engine.numpy(y), dy), grads, strict=True):
        added = tuple(range(3 - len(shape)))
        kept = product.sum(added) if added else product
        ones = tuple(i for i, size in enumerate(shape) if size == 1)
        np.testing.assert_allclose(
            engine.numpy(got), kept.sum(ones, keepdims=True).reshape(shape), atol=1e-3
        )


def test_a_running_deviation_of_zero_corrects_nothing(engine: engines.Engine) -> None:
    options = {"renorm": True, "epsilon": 0.0, "renorm_clipping": {"rmax": 3.0}}
    call = call_on(np.random.default_rng(3), X, **options)
    call.state["renorm_stddev"][1] = 0
    x = X.copy()
    x[..., 0] = 5  # constant: without epsilon its deviation is 0, too
    call.state["renorm_stddev"][0] = 0
    step = engines.stepper(engine, engine.quick, training=True, **options)
    got = step(x, call.parameters, call.state, dy=call.dy)
    call.x, call.options["training"] = x, True
    assert_agree(got, by_reference(call))
    beta = np.broadcast_to(call.parameters["beta"][0], x.shape[:-1])
    np.testing.assert_array_equal(got["y"][..., 0], beta)


@pytest.mark.parametrize("ghost", [None, 2], ids=["whole batch", "ghost batches"])
def test_unclipped_renorm_normalizes_by_its_own_state(
    engine: engines.Engine, ghost: int | None
) -> None:
    """D03: with ghost batches the originals share one r and one d, 0.32 off here."""
    call = call_on(np.random.default_rng(3), X, renorm=True)
    options = {"renorm": True, "training": True, "virtual_batch_size": ghost}
    got = engines.stepper(engine, engine.quick, **options)(X, call.parameters, call.state)["y"]
    s, p = call.state, call.parameters
    expected = (X - s["renorm_mean"]) / s["renorm_stddev"] * p["gamma"] + p["beta"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
