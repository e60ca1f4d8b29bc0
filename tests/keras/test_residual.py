"""A residual as an argument of a call: y = activation(batch_norm(x) + residual)."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import reference
from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(17)
X, R = RNG.normal(1.0, 2.0, (2, 6, 4, 3)).astype("float32")
START = {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)}


def wanted(activation, training):
    u = reference.batch_norm(X, {}, START, training=training).y + R
    return {None: u, "relu": np.maximum(u, 0), "tanh": np.tanh(u)}[activation]


def block(activation, **options):
    x, residual = keras.Input((4, 3)), keras.Input((4, 3))
    layer = ours.BatchNormalization(activation=activation, **options)
    return keras.Model([x, residual], layer(x, residual=residual))


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_added_before_the_activation(activation, training):
    y = block(activation)([X, R], training=training)
    np.testing.assert_allclose(array(y), wanted(activation, training), atol=2e-5)


def test_a_model_with_one_trains_and_is_saved_and_loaded(tmp_path):
    model = block("relu", momentum=0.5)
    model.compile("sgd", "mse")
    model.fit([X, R], X, batch_size=6, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded([X, R])), array(model([X, R])))


def test_it_is_cast_as_the_input_is():
    layer = ours.BatchNormalization(activation="relu", dtype="mixed_bfloat16")
    y = layer(X, residual=R, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    np.testing.assert_allclose(array(y).astype("float32"), wanted("relu", True), atol=0.06)


def test_a_recomputed_block_adds_it_too():
    with keras.RematScope(mode="full"):
        layer = ours.BatchNormalization(activation="relu")
    y = layer(X, residual=R, training=True)
    np.testing.assert_allclose(array(y), wanted("relu", True), atol=2e-5)
