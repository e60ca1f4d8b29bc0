"""`set_synchronized`: an attribute of layers that are there, not another class."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm import keras as ours

pytestmark = pytest.mark.keras

X = np.random.default_rng(0).normal(2.0, 3.0, (16, 6)).astype("float32")


def nested() -> keras.Model:
    inner = keras.Sequential([keras.layers.Dense(4), ours.BatchNormalization(renorm=True)])
    model = keras.Sequential([keras.layers.Input((6,)), inner, ours.SyncBatchNormalization()])
    model.compile("adam", "mse")
    return model


def test_every_layer_of_a_model_is_set_and_none_is_replaced() -> None:
    model = nested()
    model.fit(X, np.zeros((16, 4)), verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(keras.ops.convert_to_numpy(one)) for one in variables]
    layers = [model.layers[0].layers[1], model.layers[1]]
    assert batchnorm.set_synchronized(model, True) == [layer.name for layer in layers]
    assert [layer.synchronized for layer in layers] == [True, True]
    assert [model.layers[0].layers[1], model.layers[1]] == layers
    after = [*model.variables, *model.optimizer.variables]
    assert all(one is other for one, other in zip(variables, after, strict=True))
    assert all(
        np.array_equal(one, keras.ops.convert_to_numpy(other))
        for one, other in zip(before, after, strict=True)
    )


def test_it_can_be_undone_and_is_saved() -> None:
    model = nested()
    batchnorm.set_synchronized(model, False)
    copy = keras.Sequential.from_config(model.get_config())
    assert [copy.layers[0].layers[1].synchronized, copy.layers[1].synchronized] == [False, False]


def test_a_synchronized_layer_trains_as_before_in_one_process() -> None:
    plain, synchronized = nested(), nested()
    synchronized.set_weights(plain.get_weights())
    batchnorm.set_synchronized(plain, False)
    batchnorm.set_synchronized(synchronized, True)
    for model in (plain, synchronized):
        model.fit(X, np.zeros((16, 4)), batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(plain.get_weights(), synchronized.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_fit_takes_notice_after_it_has_run() -> None:
    model = nested()
    model.fit(X, np.zeros((16, 4)), verbose=0)
    assert model.train_function is not None
    batchnorm.set_synchronized(model, False)
    assert model.train_function is None


def test_fit_takes_notice_in_a_model_around_it() -> None:
    inner = nested()
    model = keras.Sequential([keras.Input(X.shape[1:]), inner])
    model.compile("sgd", "mse")
    model.fit(X, np.zeros((16, 4)), verbose=0)
    assert model.train_function is not None
    batchnorm.set_synchronized(inner, True)
    assert model.train_function is None


def refused(error: type[Exception], model: object, synchronized: object) -> str:
    with pytest.raises(error) as caught:
        batchnorm.set_synchronized(model, synchronized)
    return str(caught.value)


def test_a_model_without_our_layers_is_refused() -> None:
    model = keras.Sequential([keras.layers.BatchNormalization()], name="theirs")
    assert refused(ValueError, model, True) == (
        "set_synchronized: model must hold a batch-norm layer of batchnorm.keras; got 'theirs' "
        "with 1 of Keras' own. Build it with batchnorm.keras.BatchNormalization."
    )


def test_a_model_with_layers_of_keras_own_is_refused_and_left_alone() -> None:
    layer = ours.BatchNormalization()
    model = keras.Sequential([layer, keras.layers.BatchNormalization(name="their")])
    assert refused(ValueError, model, True) == (
        "set_synchronized: model must hold no batch-norm layers of Keras' own; got ['their']. "
        "Build it with batchnorm.keras.BatchNormalization."
    )
    assert layer.synchronized is False


def test_what_is_no_model_is_refused() -> None:
    assert refused(TypeError, 3, True) == (
        "set_synchronized: model must be a Keras model or layer, or a PyTorch module; got 3."
    )


def test_what_names_no_group_is_refused() -> None:
    assert refused(TypeError, ours.BatchNormalization(), 3) == (
        "set_synchronized: synchronized must be True, False, a process group, or the name of one "
        "or of a mapped axis; got 3."
    )
