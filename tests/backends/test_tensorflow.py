"""What is TensorFlow's alone: eager constants, vectors as they were given, NumPy, unknown ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import batchnorm
from batchnorm.backends.tensorflow.constants import constant

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
SHAPE = (2, 0, 3)


def state_of(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters, state = batchnorm.init(tf.constant(X), **options)
    return {"gamma": parameters["gamma"] + 1, "beta": parameters["beta"] + 2}, state


def test_an_eager_constant_is_made_once_and_a_graph_has_its_own() -> None:
    def make() -> Any:
        return constant(tf.zeros, SHAPE, tf.float64)

    seen = []

    @tf.function
    def function() -> Any:
        seen.append(make())
        with tf.init_scope():
            seen.append(make())
        return seen[0]

    first = function()
    traced, lifted = seen
    assert make() is make() is lifted
    assert tf.is_symbolic_tensor(traced)
    assert not tf.is_symbolic_tensor(lifted)
    assert first.shape == lifted.shape == SHAPE
    assert first.dtype == lifted.dtype == tf.float64


@pytest.mark.parametrize("first", ["eager", "traced"])
def test_a_size_may_first_be_met_eagerly_or_in_a_trace(first: str) -> None:
    width = {"eager": 5, "traced": 7}[first]  # sizes of this test alone
    x = tf.random.normal((11, width))
    parameters, state = batchnorm.init(x)

    def run() -> Any:
        return batchnorm.batch_norm(x, parameters, state, training=True)[0]

    order = [run, tf.function(run)]
    for function in order if first == "eager" else order[::-1]:
        y = function()
        np.testing.assert_allclose(tf.reduce_mean(y, 0), np.zeros(width), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("renorm", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_numpy_parameters_and_state(
    training: bool, fused: bool | None, renorm: bool, traced: bool
) -> None:
    parameters, state = state_of(renorm=renorm)
    how = {"training": training, "fused": fused, "renorm": renorm}

    def run(x: Any, given: Any, kept: Any) -> Any:
        return batchnorm.batch_norm(x, given, kept, **how)

    arrays = [{name: one.numpy() for name, one in group.items()} for group in (parameters, state)]
    x = tf.constant(X)
    y, new = run(x, parameters, state)
    function = tf.function(lambda x: run(x, *arrays)) if traced else lambda x: run(x, *arrays)
    same, other = function(x)
    np.testing.assert_allclose(same, y, rtol=1e-6, atol=1e-6)
    assert set(other) == set(new)
    for name, one in new.items():
        assert other[name].shape == one.shape
        assert tf.as_dtype(other[name].dtype) == one.dtype
        np.testing.assert_allclose(other[name], one, rtol=1e-6)


def test_numpy_parameters_of_another_type_and_size() -> None:
    _, state = state_of()
    x = tf.constant(X)
    y, _ = batchnorm.batch_norm(x, {"gamma": np.ones(3)}, state, training=True)
    assert y.dtype == tf.float32
    with pytest.raises(ValueError, match=r"gamma must have the shape \(3,\); got \(4,\)"):
        batchnorm.batch_norm(x, {"gamma": np.ones(4)}, state, training=True)


@pytest.mark.parametrize("name", ["x", "gamma", "moving_mean", "mask", "batch_weights"])
def test_an_unknown_rank_is_refused_by_the_argument_s_name(name: str) -> None:
    parameters, state = state_of()
    given = {"x": tf.constant(X), **parameters, **state}
    given |= {"mask": tf.ones(6), "batch_weights": tf.ones(6)}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
    def run(value: Any) -> Any:
        all_of_them = given | {name: value}
        extra = {name: value} if name in ("mask", "batch_weights") else {}
        return batchnorm.batch_norm(
            all_of_them["x"],
            {one: all_of_them[one] for one in parameters},
            {one: all_of_them[one] for one in state},
            training=True,
            **extra,
        )

    with pytest.raises(ValueError, match=r"^batch_norm: ") as caught:
        run(given[name])
    assert str(caught.value) == (
        f"batch_norm: {name} must have a known rank; got an unknown one. Set its static shape."
    )


def test_init_refuses_an_unknown_rank() -> None:
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
    def run(x: Any) -> Any:
        return batchnorm.init(x)

    with pytest.raises(ValueError, match="init: x must have a known rank"):
        run(tf.constant(X))


def test_training_of_unknown_rank_is_a_scalar_at_run_time() -> None:
    parameters, state = state_of()

    @tf.function(input_signature=[tf.TensorSpec(None, tf.bool)], autograph=False)
    def run(training: Any) -> Any:
        return batchnorm.batch_norm(tf.constant(X), parameters, state, training=training)[0]

    for training in (True, False):
        expected = batchnorm.batch_norm(tf.constant(X), parameters, state, training=training)[0]
        np.testing.assert_allclose(run(tf.constant(training)), expected, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("channels", [3, 0])
def test_gradients_have_the_shapes_of_what_was_given(
    training: bool, traced: bool, channels: int
) -> None:
    x = tf.constant(X[:, :channels])
    parameters, state = batchnorm.init(x)
    variable = tf.Variable(parameters["gamma"])

    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, parameters["beta"]))
            given = parameters | {"gamma": variable}
            y, _ = batchnorm.batch_norm(x, given, state, training=training)
        return tape.gradient(y, (x, variable, parameters["beta"]), output_gradients=x * x)

    dx, dgamma, dbeta = (tf.function(run) if traced else run)()
    assert dx.shape == x.shape
    assert dgamma.shape == dbeta.shape == (channels,)
    np.testing.assert_allclose(dbeta, tf.reduce_sum(x * x, 0), rtol=1e-6)


def test_what_was_absent_has_no_gradient() -> None:
    x = tf.constant(X)
    _, state = batchnorm.init(x)
    gamma = tf.ones(3)
    with tf.GradientTape() as tape:
        tape.watch((x, gamma))
        y, _ = batchnorm.batch_norm(x, {"gamma": gamma}, state, training=True)
    dx, dgamma = tape.gradient(y, (x, gamma), output_gradients=x)
    assert dx.shape == x.shape
    np.testing.assert_allclose(dgamma, tf.reduce_sum(x * y, 0), rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"zero_debias": "both"}], ids=str)
def test_chunks_of_a_batch_that_only_the_run_knows(size: int, options: dict[str, Any]) -> None:
    """`fit` traces so, where the last batch is smaller: the number of chunks is a tensor."""
    parameters, state = state_of(zero_debias=options.get("zero_debias", False))
    how = {"training": True, "virtual_batch_size": size, "ghost_order": "chunks", **options}

    def step(x: tf.Tensor) -> Any:
        return batchnorm.batch_norm(x, parameters, state, **how)

    open_batch = tf.function(step, input_signature=[tf.TensorSpec((None, 3))])
    found, expected = (tf.nest.flatten(one(tf.constant(X))) for one in (open_batch, step))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
