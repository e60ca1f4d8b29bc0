"""What Keras' own tests of its batch normalization hold its layer to, held to ours.

The facts are those of keras-team/keras, layers/normalization/batch_normalization_test.py (3.15).
Arguments, initial statistics, weights and configurations are in the other files here.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy


def data(shape):
    return np.random.default_rng(7).normal(5.0, 10.0, shape).astype("float32")


def others(shape, axis):
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
@pytest.mark.parametrize(("axis", "initial"), [(-1, "zeros"), (-1, "ones"), (1, "zeros")])
def test_three_times_normalized_is_normalized_and_remembered(axis, shape, initial):
    layer = ours.BatchNormalization(
        axis=axis, momentum=0, moving_mean_initializer=initial, moving_variance_initializer=initial
    )
    out = x = data(shape)
    for _ in range(3):
        out = layer(out, training=True)
    over = others(shape, axis)
    np.testing.assert_allclose(array(out).mean(over), 0, atol=1e-3)
    np.testing.assert_allclose(array(out).std(over), 1, atol=1e-3)
    np.testing.assert_allclose(array(layer.moving_mean), 0, atol=1e-3)
    np.testing.assert_allclose(array(layer.moving_variance), 1, atol=2e-3)
    assert abs(array(layer(x)) - array(layer(x, training=True))).max() > 0.1
    after = array(layer(x))  # with momentum 0 the last batch is all that is remembered
    np.testing.assert_allclose(after, array(layer(x, training=True)), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_propagated_mask_changes_nothing_in_inference(axis, shape):
    layer = ours.BatchNormalization(axis=axis)
    x = data(shape)
    layer(x, training=True)
    x[:, 1] = 0
    masked = keras.layers.Masking()(x)
    np.testing.assert_array_equal(array(layer(masked, training=False)), array(layer(x)))


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 3, 3, 2)], ids=str)
def test_a_propagated_mask_counts_in_training(shape):
    layer = ours.BatchNormalization(momentum=0.0)
    x = data(shape)
    x[:, 1] = 0
    y = layer(keras.layers.Masking()(x), training=True)
    assert abs(array(y) - array(ours.BatchNormalization()(x, training=True))).max() > 0.1
    seen = np.delete(x, 1, axis=1)
    np.testing.assert_allclose(array(layer.moving_mean), seen.mean(others(shape, -1)), rtol=1e-5)


def test_a_fully_masked_input_gives_zeros():
    layer = ours.BatchNormalization(scale=False, center=False)
    y = layer(np.zeros((4, 5), "float32"), mask=np.zeros(4, "float32"), training=True)
    np.testing.assert_array_equal(array(y), np.zeros((4, 5)))


@pytest.mark.parametrize(("run_eagerly", "value"), [(True, 0.1), (False, 0.0), (False, 1.0)])
def test_masked_values_are_ignored_in_fit(run_eagerly, value):
    x = np.array([[[1, 5], [2, 5], [value, value], [value, value]]] * 10, "float32")
    layer = ours.BatchNormalization(momentum=0.0)
    inputs = keras.layers.Input((None, 2))
    model = keras.Model(inputs, layer(keras.layers.Masking(mask_value=value)(inputs)))
    model.compile("rmsprop", "mse", run_eagerly=run_eagerly)
    model.fit(x, x, batch_size=10, epochs=2, verbose=0)
    np.testing.assert_allclose(array(layer.moving_mean), [1.5, 5.0], rtol=1e-6)
    np.testing.assert_allclose(array(layer.moving_variance), [0.25, 0.0], atol=1e-6)


def test_a_frozen_layer_neither_normalizes_nor_learns_until_it_is_thawed():
    layer = ours.BatchNormalization(momentum=0.8, epsilon=1e-7)
    layer.build((1, 4, 4, 3))
    layer.trainable = False
    assert [len(layer.weights), len(layer.trainable_weights)] == [4, 0]
    x = data((20, 4, 4, 3))
    np.testing.assert_allclose(array(layer(x, training=True)), x, rtol=1e-6)
    layer.trainable = True
    assert [len(layer.weights), len(layer.trainable_weights)] == [4, 2]
    y = array(layer(x, training=True))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)


def test_statistics_may_be_too_large_for_16_bits_under_autocast():
    layer = ours.BatchNormalization(dtype="mixed_float16")
    layer.build((1, 4, 4, 3))
    layer.moving_variance.assign(np.full(3, 70000.0))
    y = layer(np.full((1, 4, 4, 3), 70000.0**0.5, "float32"))
    np.testing.assert_array_equal(array(layer.moving_variance), 70000.0)
    np.testing.assert_allclose(array(y).astype("float32"), 1.0, rtol=1e-3)


def test_a_mask_broadcasts_along_the_positions():
    layer = ours.BatchNormalization(momentum=0.0)
    y = layer(np.ones((1, 2, 3, 4), "float32"), training=True, mask=np.ones((1, 2, 1)))
    np.testing.assert_allclose(array(y), 0, atol=1e-6)
    np.testing.assert_allclose(array(layer.moving_mean), 1, atol=1e-6)
    np.testing.assert_allclose(array(layer.moving_variance), 0, atol=1e-6)


def assign(layer, **values):
    for name, value in values.items():
        getattr(layer, name).assign(value)


def test_renorm_changes_nothing_in_inference():
    rng = np.random.default_rng(8)
    layers = [ours.BatchNormalization(renorm=renorm) for renorm in (False, True)]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    values = {name: rng.uniform(0.5, 2.0, 10) for name in names}
    for layer in layers:
        layer.build((None, 10))
        assign(layer, **values)
    plain, renorm = (array(layer(data((4, 10)))) for layer in layers)
    np.testing.assert_allclose(renorm, plain, rtol=1e-5, atol=1e-5)


def test_a_step_of_renorm_from_any_state():
    rng = np.random.default_rng(1337)
    epsilon, momentum, own_momentum = 1e-3, 0.9, 0.8
    layer = ours.BatchNormalization(
        epsilon=epsilon, momentum=momentum, renorm=True, renorm_momentum=own_momentum
    )
    layer.build((None, 3))
    mean, renorm_mean, beta = rng.normal(size=(3, 3))
    variance, renorm_stddev, gamma = rng.uniform(0.5, 1.5, (3, 3))
    old = {"moving_mean": mean, "renorm_mean": renorm_mean, "renorm_stddev": renorm_stddev}
    assign(layer, **old, moving_variance=variance, moving_stddev=variance**0.5)
    assign(layer, gamma=gamma, beta=beta)

    x = np.array([[4.0, 6.0, 2.0], [8.0, -2.0, 5.0], [6.0, 4.0, 3.0]], "float32")
    stddev = np.sqrt(x.var(0) + epsilon)
    r, d = stddev / renorm_stddev, (x.mean(0) - renorm_mean) / renorm_stddev
    want = ((x - x.mean(0)) / stddev * r + d) * gamma + beta
    np.testing.assert_allclose(array(layer(x, training=True)), want, atol=1e-5)

    moved = {
        "renorm_mean": own_momentum * renorm_mean + (1 - own_momentum) * x.mean(0),
        "renorm_stddev": own_momentum * renorm_stddev + (1 - own_momentum) * stddev,
        "moving_mean": momentum * mean + (1 - momentum) * x.mean(0),
        "moving_stddev": momentum * variance**0.5 + (1 - momentum) * stddev,
    }
    moved["moving_variance"] = moved["moving_stddev"] ** 2 - epsilon
    for name, value in moved.items():
        np.testing.assert_allclose(array(getattr(layer, name)), value, atol=1e-5, err_msg=name)
