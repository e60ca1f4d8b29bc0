"""Ragged tensors, which Keras has on TensorFlow: statistics over the values that there are."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import reference
from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(21)
VALUES = RNG.normal(2.0, 3.0, (9, 3)).astype("float32")
LENGTHS = [3, 0, 4, 2]
START = {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)}


@pytest.fixture
def tf():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras has ragged tensors on TensorFlow")
    return pytest.importorskip("tensorflow")


def ragged(tf, values=VALUES):
    return tf.RaggedTensor.from_row_lengths(values, LENGTHS)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_statistics_are_those_of_the_values(tf, compiled):
    layer = ours.BatchNormalization(momentum=0.5)
    call = tf.function(layer) if compiled else layer
    y = call(ragged(tf), training=True)
    want = reference.batch_norm(VALUES, {}, START, training=True, momentum=0.5)
    assert y.row_lengths().numpy().tolist() == LENGTHS
    np.testing.assert_allclose(y.flat_values, want.y, atol=1e-5)
    np.testing.assert_allclose(array(layer.moving_mean), want.state["moving_mean"], atol=1e-5)
    y = call(ragged(tf), training=False)
    want = reference.batch_norm(VALUES, {}, want.state, training=False)
    np.testing.assert_allclose(y.flat_values, want.y, atol=1e-5)


def test_keras_own_layer_gives_the_same(tf):
    mine, theirs = ours.BatchNormalization(), keras.layers.BatchNormalization()
    for training in (True, False):
        y, want = mine(ragged(tf), training=training), theirs(ragged(tf), training=training)
        np.testing.assert_allclose(y.flat_values, want.flat_values, atol=1e-5)
    np.testing.assert_allclose(array(mine.moving_mean), array(theirs.moving_mean), atol=1e-6)


def test_gradients_reach_a_ragged_input_and_the_parameters(tf):
    layer = ours.BatchNormalization(activation="tanh")
    layer(ragged(tf))
    values = tf.constant(VALUES)
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = layer(ragged(tf, values), training=True)
        loss = tf.reduce_sum(y.flat_values**3)
    dx, dgamma = tape.gradient(loss, [values, layer.gamma.value])
    flat = ours.BatchNormalization(activation="tanh")
    flat(values)
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = tf.reduce_sum(flat(values, training=True) ** 3)
    want = tape.gradient(loss, [values, flat.gamma.value])
    np.testing.assert_allclose(dx, want[0], atol=1e-5)
    np.testing.assert_allclose(dgamma, want[1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["mask", "batch_weights"])
def test_weights_are_ragged_too_or_one_per_sample(tf, kind):
    layer = ours.BatchNormalization(momentum=0.0)
    if kind == "mask":
        each = RNG.random(9) < 0.6
        given = ragged(tf, each)
    else:
        given = np.array([1.0, 5.0, 2.0, 0.5], "float32")
        each = np.repeat(given, LENGTHS)
    layer(ragged(tf), training=True, **{kind: given})
    want = (VALUES * each[:, None]).sum(0) / each.sum()
    np.testing.assert_allclose(array(layer.moving_mean), want, rtol=1e-5)


def test_two_ragged_dimensions_and_an_image_in_each(tf):
    values = RNG.normal(1.0, 2.0, (9, 2, 3)).astype("float32")
    x = tf.RaggedTensor.from_row_lengths(ragged(tf, values), [1, 3])
    layer = ours.BatchNormalization(axis=3, momentum=0.0)
    y = layer(x, training=True)
    assert y.ragged_rank == 2
    np.testing.assert_allclose(array(layer.moving_mean), values.mean((0, 2)), rtol=1e-5)


def test_a_ragged_axis_is_refused_in_words(tf):
    layer = ours.BatchNormalization(axis=[0, 2], name="bn")
    x = tf.RaggedTensor.from_row_lengths(VALUES, LENGTHS)
    layer.build((4, 5, 3))
    with pytest.raises(ValueError, match="ragged") as caught:
        layer(x)
    assert (
        "BatchNormalization 'bn': axis must be behind the ragged dimensions, in [2, 2], for a "
        "ragged input; got 0."
    ) in str(caught.value)


def test_what_ragged_tensors_do_not_have_is_refused_in_words(tf):
    layer = ours.BatchNormalization(virtual_batch_size=2, name="bn")
    with pytest.raises(ValueError, match="ragged") as caught:
        layer(ragged(tf), training=True)
    assert (
        "BatchNormalization 'bn': virtual_batch_size must be None for a ragged input; got 2. Call "
        "the layer with a padded tensor and a mask."
    ) in str(caught.value)
    layer = ours.BatchNormalization(name="bn")
    with pytest.raises(ValueError, match="ragged") as caught:
        layer(ragged(tf), training=True, mask=np.ones((4, 4), bool))
    assert (
        "BatchNormalization 'bn': mask must be ragged like the input, or have one value per "
        "sample; got one of shape (4, 4) for a ragged input of shape (4, None, 3)."
    ) in str(caught.value)
