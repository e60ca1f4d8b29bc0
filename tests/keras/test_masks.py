"""Masks and weights through Keras: propagated, explicit, as inputs of a model."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import reference
from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(12)
X = RNG.normal(2.0, 3.0, (6, 4, 3)).astype("float32")
MASK = RNG.random((6, 4)) < 0.6
WEIGHTS = RNG.uniform(0.5, 2.0, 6).astype("float32")


def expected_mean(weights):
    return (X * weights[..., None]).sum((0, 1)) / weights.sum()


def padded():
    """X with zeros, which `Masking` masks, where MASK is false."""
    return np.where(MASK[..., None], X, 0).astype("float32")


@pytest.mark.parametrize("extra", [{}, {"batch_weights": WEIGHTS}], ids=["mask", "mask, weights"])
@pytest.mark.parametrize("kind", ["bool", "tensor"])
def test_a_propagated_mask_counts(extra, kind):
    training = keras.ops.convert_to_tensor(True) if kind == "tensor" else True
    layer = ours.BatchNormalization(momentum=0.0)
    layer(keras.layers.Masking()(padded()), training=training, **extra)
    weights = MASK * (WEIGHTS[:, None] if extra else 1.0)
    np.testing.assert_allclose(array(layer.moving_mean), expected_mean(weights), atol=1e-5)


def test_a_mask_counts_in_fit():
    layer = ours.BatchNormalization(momentum=0.0)
    model = keras.Sequential([keras.layers.Input((4, 3)), keras.layers.Masking(), layer])
    model.compile("sgd", "mse")
    model.fit(padded(), X, batch_size=6, verbose=0)
    np.testing.assert_allclose(array(layer.moving_mean), expected_mean(MASK), atol=1e-5)


def test_the_mask_of_an_embedding_counts():
    embedding = keras.layers.Embedding(7, 3, mask_zero=True)
    tokens = np.where(MASK, 1 + np.arange(24).reshape(6, 4) % 6, 0)
    layer = ours.BatchNormalization(momentum=0.0)
    layer(embedding(tokens), training=True)
    want = array(embedding(tokens))[MASK].mean(0)
    np.testing.assert_allclose(array(layer.moving_mean), want, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 2, [2, 3]], ids=str)
def test_a_propagated_mask_covers_the_first_dimensions_whatever_the_axis(axis):
    x = RNG.normal(2.0, 3.0, (6, 4, 3, 2)).astype("float32")
    layer = ours.BatchNormalization(axis=axis, momentum=0.0)
    x = keras.ops.convert_to_tensor(x)
    keras.src.backend.set_keras_mask(x, keras.ops.convert_to_tensor(MASK))
    layer(x, training=True)
    over = tuple(i for i in range(4) if i not in ([axis % 4] if isinstance(axis, int) else axis))
    weights = np.broadcast_to(MASK[:, :, None, None], x.shape)
    want = (array(x) * weights).sum(over, keepdims=True) / weights.sum(over, keepdims=True)
    np.testing.assert_allclose(array(layer.moving_mean).ravel(), want.ravel(), rtol=1e-5)


def test_a_propagated_mask_over_the_axis_is_refused_in_training():
    layer = ours.BatchNormalization(axis=1, name="bn")
    masked = keras.layers.Masking()(padded())
    with pytest.raises(ValueError, match="mask") as caught:
        layer(masked, training=True)
    assert (
        "BatchNormalization 'bn': a mask that comes with the input must not cover axis 1 in "
        "training; got one of shape (6, 4) for an input of shape (6, 4, 3). Call the layer with a "
        "mask that has 1 there, or none of that dimension."
    ) in str(caught.value)


def test_a_mask_that_is_given_over_the_axis_of_a_masked_input_is_taken_instead():
    layer = ours.BatchNormalization(axis=1, momentum=0.0)
    mine = np.array([True, False, True, True, False, True])
    layer(keras.layers.Masking()(padded()), training=True, mask=mine)
    np.testing.assert_allclose(
        array(layer.moving_mean), padded()[mine].mean((0, 2)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"statistics": "moving", "update_statistics": False}, {"trainable": False}],
    ids=["inference", "moving", "frozen"],
)
def test_a_propagated_mask_is_not_read_where_no_statistics_are_taken(options):
    layer = ours.BatchNormalization(axis=1, **options)
    y = layer(keras.layers.Masking()(padded()), training=bool(options))
    np.testing.assert_allclose(array(y), padded() / np.sqrt(1.001), rtol=1e-6)


def test_a_network_with_a_mask_over_the_axis_runs_in_inference():
    model = keras.Sequential(
        [keras.layers.Input((4, 3)), keras.layers.Masking(), ours.BatchNormalization(axis=1)]
    )
    np.testing.assert_allclose(
        model.predict(padded(), verbose=0), padded() / np.sqrt(1.001), rtol=1e-6
    )


def test_the_mask_is_passed_on():
    class Seen(keras.layers.Layer):
        supports_masking = True

        def call(self, inputs, mask=None):
            self.seen = None if mask is None else array(mask)
            return inputs

    seen = Seen()
    seen(ours.BatchNormalization()(keras.layers.Masking()(padded())))
    np.testing.assert_array_equal(seen.seen, MASK)


def test_masked_values_may_be_nan_in_a_model():
    layer = ours.BatchNormalization(momentum=0.5)
    x, mask = keras.Input((4, 3)), keras.Input((4,), dtype="bool")
    model = keras.Model([x, mask], layer(x, mask=mask))
    spoiled = np.where(MASK[..., None], X, np.nan).astype("float32")
    y = array(model([spoiled, MASK], training=True))
    want = reference.batch_norm(
        X, {}, {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)},
        training=True, momentum=0.5, mask=MASK,
    )  # fmt: skip
    np.testing.assert_allclose(y[MASK], want.y[MASK], atol=1e-5)
    np.testing.assert_array_equal(y[~MASK], 0)  # beta
    np.testing.assert_allclose(array(layer.moving_mean), want.state["moving_mean"], atol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "int32", "bool"])
def test_batch_weights_may_have_any_type(kind):
    weights = (np.arange(6) % 3).astype(kind)
    layer = ours.BatchNormalization(momentum=0.0)
    layer(X, training=True, batch_weights=weights)
    want = expected_mean(np.repeat(weights.astype("f8"), 4).reshape(6, 4))
    np.testing.assert_allclose(array(layer.moving_mean), want, atol=1e-5)


def test_batch_weights_as_an_input_of_a_model_count_in_fit():
    layer = ours.BatchNormalization(momentum=0.0)
    x, weights = keras.Input((4, 3)), keras.Input(())
    model = keras.Model([x, weights], layer(x, batch_weights=weights))
    model.compile("sgd", "mse")
    model.fit([X, WEIGHTS], X, batch_size=6, verbose=0)
    want = expected_mean(np.repeat(WEIGHTS, 4).reshape(6, 4))
    np.testing.assert_allclose(array(layer.moving_mean), want, atol=1e-5)


def test_a_model_with_weights_and_masks_is_saved_and_loaded(tmp_path):
    x, weights = keras.Input((4, 3)), keras.Input(())
    layer = ours.BatchNormalization(name="bn")
    model = keras.Model([x, weights], layer(keras.layers.Masking()(x), batch_weights=weights))
    model([padded(), WEIGHTS], training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        array(loaded([padded(), WEIGHTS])), array(model([padded(), WEIGHTS]))
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_batch_weights_are_not_rounded_to_16_bits(policy):
    weights = np.array([1e5, 1.0, 2e5, 1.0, 3e5, 4e5], "float32")
    x = (np.arange(18).reshape(6, 3) / 4).astype("float32")  # exact in 16 bits
    layer = ours.BatchNormalization(momentum=0.0, dtype=policy)
    layer(x, training=True, batch_weights=weights)
    want = (x * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(array(layer.moving_mean), want, rtol=1e-6)


@pytest.mark.parametrize("given", ["mask", "batch_weights"])
def test_a_batch_without_any_weight_changes_no_statistics(given):
    layer = ours.BatchNormalization(renorm=True)
    layer(X, training=True)
    before = layer.get_weights()
    y = layer(X, training=True, **{given: np.zeros(6, bool if given == "mask" else "float32")})
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(array(y), array(layer(X)), rtol=1e-5, atol=1e-6)  # as in inference


def test_a_fully_masked_batch_in_fit_changes_no_statistics():
    layer = ours.BatchNormalization()
    model = keras.Sequential([keras.layers.Input((4, 3)), keras.layers.Masking(), layer])
    model.compile("sgd", "mse")
    model.train_on_batch(X, X)
    before = [array(layer.moving_mean).copy(), array(layer.moving_variance).copy()]
    model.train_on_batch(np.zeros_like(X), X)
    np.testing.assert_array_equal(array(layer.moving_mean), before[0])
    np.testing.assert_array_equal(array(layer.moving_variance), before[1])
