"""Averaged weights get statistics of their own."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.keras import WeightAveraging
from tool_models import dense, rows, statistics

pytestmark = pytest.mark.keras

X, Y = rows(32, mean=2.0), np.ones((32, 3), np.float32)


class Recorder(keras.callbacks.Callback):
    """Weights of the last layer at each epoch's end, and the kernel that evaluation saw."""

    def __init__(self):
        super().__init__()
        self.epochs, self.evaluated = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(kernel(self.model))

    def on_test_begin(self, logs=None):
        self.evaluated.append(kernel(self.model))


def kernel(model) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(model.layers[-1].kernel.value))


def fit(averaging, epochs=3, **options):
    keras.utils.set_random_seed(7)
    model, recorder = dense("ours"), Recorder()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    callbacks = [averaging, recorder]
    model.fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **options
    )
    return model, recorder


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"average": "swa"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"average": "swa", "start": 1}, [0, 1 / 2, 1 / 2]),
        ({"average": "ema", "decay": 0.5}, [1 / 7, 2 / 7, 4 / 7]),
    ],
)
def test_training_ends_with_the_average_and_its_own_statistics(options, shares):
    model, recorder = fit(WeightAveraging(X, **options))
    wanted = sum(share * one for share, one in zip(shares, recorder.epochs, strict=True))
    np.testing.assert_allclose(kernel(model), wanted, rtol=1e-5, atol=1e-6)
    found = statistics(model.get_layer("second"))
    batchnorm.reestimate(model, X)
    for now, then in zip(statistics(model.get_layer("second")), found, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-6)


def test_evaluation_sees_the_average_and_training_goes_on_without():
    _, plain = fit(keras.callbacks.Callback())
    _, averaged = fit(WeightAveraging(X), validation_data=(X, Y))
    for ours, theirs in zip(averaged.epochs, plain.epochs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # the evaluation of an epoch comes before its end: it sees the average of those before
    np.testing.assert_allclose(averaged.evaluated[2], np.mean(averaged.epochs[:2], 0), rtol=1e-4)


def test_without_an_average_only_statistics_are_re_estimated():
    model, recorder = fit(WeightAveraging(X, None))
    np.testing.assert_array_equal(kernel(model), recorder.epochs[-1])
    np.testing.assert_allclose(statistics(model.get_layer("first"))[0], X.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"average": "mean"},
            "WeightAveraging: average must be one of 'swa', 'ema', None; got 'mean'.",
        ),
        ({"decay": 1}, "WeightAveraging: decay must be in [0, 1); got 1."),
    ],
)
def test_each_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match="WeightAveraging") as raised:
        WeightAveraging(X, **options)
    assert str(raised.value) == message
