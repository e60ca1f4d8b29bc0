"""What fold refuses, and says of it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.keras import BatchNormalization
from tool_models import dense, reasons, rows, shake

pytestmark = pytest.mark.keras


layers = keras.layers


# TensorFlow on the CPU computes channels-last only, and no groups.
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def refused(build) -> str:
    """The reason why the layer "norm" of a built graph is kept; its outputs stay the same."""
    inputs = keras.Input((6, 5))
    model = shake(keras.Model(inputs, build(inputs)))
    x = np.random.default_rng(1).normal(0.5, 1, (3, 6, 5)).astype(np.float32)
    folded = batchnorm.fold(model, x)
    assert folded.folding.difference <= 1e-5
    return reasons(folded)["norm"]


def norm(x, **options):
    return BatchNormalization(name="norm", **options)(x)


def relu(x):
    return layers.ReLU(name="relu")(x)


def test_an_activation_in_between_is_refused():
    def build(x):
        return layers.ReLU(name="behind")(norm(relu(layers.Dense(4)(x))))

    assert refused(build) == (
        "not into what is before it: 'relu' (ReLU) is no linear layer that fold knows; not into "
        "what is behind it: 'behind' (ReLU) is no linear layer that fold knows"
    )


def test_an_activation_of_the_linear_layer_is_refused():
    reason = refused(lambda x: relu(norm(layers.Dense(4, activation="tanh", name="dense")(x))))
    assert reason == (
        "not into what is before it: 'dense' ends in the activation 'tanh'; not into what is "
        "behind it: 'relu' (ReLU) is no linear layer that fold knows"
    )


def test_a_second_consumer_is_refused():
    def build(x):
        y = layers.Dense(4, name="dense")(x)
        return layers.Add(name="add")([norm(y), y])

    assert refused(build) == (
        "not into what is before it: the output of 'dense' has more than one consumer: 'norm', "
        "'add'; not into what is behind it: 'add' (Add) is no linear layer that fold knows"
    )


def test_an_output_of_the_model_is_refused():
    def build(x):
        y = layers.Dense(4, name="dense")(x)
        return [y, norm(y)]

    assert refused(build) == (
        "not into what is before it: the output of 'dense' is an output of the model; not into "
        "what is behind it: the output of 'norm' is an output of the model"
    )


def test_a_shared_linear_layer_is_refused():
    def build(x):
        dense_ = layers.Dense(5, name="dense")
        return norm(dense_(dense_(x)))

    assert refused(build).startswith(
        "not into what is before it: 'dense' is shared: called 2 times; not into"
    )


def test_a_shared_normalization_is_refused():
    def build(x):
        shared = BatchNormalization(name="norm")
        return shared(layers.Dense(5)(shared(layers.Dense(5)(x))))

    assert refused(build) == "it is shared: called 2 times"


def test_padding_that_is_not_normalized_is_refused():
    def build(x):
        return layers.Conv1D(4, 3, padding="causal", name="conv")(norm(x))

    assert refused(build).endswith(
        "not into what is behind it: 'conv' pads its input (padding='causal') with zeros that are "
        "not normalized"
    )


def test_a_transposed_convolution_behind_an_offset_is_refused():
    assert refused(lambda x: layers.Conv1DTranspose(4, 3, name="conv")(norm(x))).endswith(
        "'conv' is transposed: its edges see fewer inputs, and so less of the offset"
    )


def test_channels_elsewhere_are_refused():
    def build(x):
        return relu(norm(layers.Dense(5, name="dense")(x), axis=1))

    assert refused(build).startswith(
        "not into what is before it: 'dense' has its channels on axis -1, this on 1; not into"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"statistics": "batch"}, "it normalizes with the batch (statistics='batch')"),
        (
            {"update_statistics": True},
            "inference updates its statistics (update_statistics=True)",
        ),
        ({"axis": [1, 2]}, "it normalizes several axes: [1, 2]"),
    ],
)
def test_a_normalization_that_is_no_affine_map_is_refused(options, reason):
    inputs = keras.Input((6, 5))
    model = keras.Model(inputs, norm(layers.Dense(4)(inputs), **options))
    assert reasons(batchnorm.fold(model)) == {"norm": reason}


def test_training_true_is_refused():
    inputs = keras.Input((6, 5))
    outputs = BatchNormalization(name="norm")(layers.Dense(4)(inputs), training=True)
    assert reasons(batchnorm.fold(keras.Model(inputs, outputs))) == {
        "norm": "it is called with training=True: it normalizes with the batch"
    }


def test_a_model_called_with_training_true_is_left_alone():
    inputs = keras.Input((5,))
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4), BatchNormalization(name="norm")], name="inner"
    )
    model = keras.Model(inputs, inner(inputs, training=True))
    folded = batchnorm.fold(model)
    assert reasons(folded) == {
        "inner/norm": "it is inside 'inner', which is called with training=True"
    }
    x = rows(9)
    old, new = (keras.ops.convert_to_numpy(one(x)) for one in (model, folded))
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-5)


def test_dropout_that_goes_on_in_inference_is_no_way_through():
    def build(x):
        return relu(norm(layers.Dropout(0.5, name="drop")(layers.Dense(4)(x), training=True)))

    assert refused(build).startswith(
        "not into what is before it: 'drop' (Dropout) is no linear layer that fold knows; not into"
    )


class Trains(layers.BatchNormalization):
    """Normalizes with the batch at all times, as layers of some detection networks do."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=True, mask=mask)


class Scales(keras.Model):
    """A functional model whose graph is not all that it does."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs * 10.0, training=training, mask=mask)


def test_a_normalization_with_a_call_of_its_own_is_refused():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), Trains(name="norm")])
    assert reasons(batchnorm.fold(model)) == {"norm": "its class Trains has a call of its own"}


def test_a_functional_model_with_a_call_of_its_own_is_named():
    inputs = keras.Input((5,))
    with pytest.raises(ValueError, match="functional") as raised:
        batchnorm.fold(Scales(inputs, BatchNormalization()(layers.Dense(4)(inputs))))
    assert str(raised.value) == (
        "fold: model must be functional or sequential with a known input shape, so that its graph "
        "is known; got Scales."
    )


def test_another_precision_is_refused():
    reason = refused(
        lambda x: relu(
            norm(layers.Dense(4, name="dense", dtype="float32")(x), dtype="mixed_float16")
        )
    )
    assert reason.startswith(
        "not into what is before it: 'dense' computes in float32, this in float16; not into"
    )


def test_statistics_that_are_not_finite_are_refused():
    model = dense("ours")
    model.get_layer("first").moving_mean.assign([np.nan] * 5)
    assert reasons(batchnorm.fold(model)) == {
        "first": "its statistics or parameters are not finite; see batchnorm.repair"
    }
