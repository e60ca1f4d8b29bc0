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
        self.epochs, self.gammas, self.evaluated = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(kernel(self.model))
        gamma = self.model.get_layer("second").gamma
        self.gammas.append(np.array(keras.ops.convert_to_numpy(gamma.value)))

    def on_test_begin(self, logs=None):
        self.evaluated.append(kernel(self.model))


def kernel(model) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(model.layers[-1].kernel.value))


def started(**optimizer):
    keras.utils.set_random_seed(7)
    model = dense("ours")
    model.compile(keras.optimizers.SGD(0.1, **optimizer), "mse")
    return model, Recorder()


def run(model, callbacks, epochs=1, **options):
    model.fit(
        X, Y, batch_size=8, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **options
    )


def fit(averaging, epochs=3, optimizer=None, **options):
    model, recorder = started(**(optimizer or {}))
    run(model, [*np.atleast_1d(averaging), recorder], epochs, **options)
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
    for epoch, seen in enumerate(averaged.evaluated):  # its own epoch included
        wanted = np.mean(averaged.epochs[: epoch + 1], 0)
        np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-6)


def test_kerass_own_averages_are_swapped_and_training_goes_on_without():
    """It did not: the averages were written into the model at the end of each evaluation."""
    options = {"validation_data": (X, Y), "optimizer": {"use_ema": True, "ema_momentum": 0.9}}
    _, plain = fit(keras.callbacks.SwapEMAWeights(), **options)
    _, averaged = fit([keras.callbacks.SwapEMAWeights(), WeightAveraging(X, None)], **options)
    for part in ("epochs", "evaluated", "gammas"):
        ours, theirs = getattr(averaged, part), getattr(plain, part)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(np.subtract(plain.epochs, plain.evaluated)).max() > 1e-2


class Interrupting(keras.callbacks.Callback):
    """Interrupts the second evaluation, half through."""

    def __init__(self):
        super().__init__()
        self.begun = 0

    def on_test_begin(self, logs=None):
        self.begun += 1

    def on_test_batch_end(self, batch, logs=None):
        if (self.begun, batch) == (2, 1):
            raise KeyboardInterrupt


class Broken:
    """Batches that are interrupted, half through, when they are read for the nth time."""

    def __init__(self, nth):
        self.left = nth

    def __iter__(self):
        self.left -= 1
        yield X[:8]
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["evaluation", "re-estimation"])
def test_an_interrupted_evaluation_leaves_training_its_weights_and_statistics(where):
    callbacks = {
        "evaluation": [WeightAveraging(X), Interrupting()],
        "re-estimation": [WeightAveraging(Broken(2))],
    }
    model, _ = started()
    with pytest.raises(KeyboardInterrupt):
        run(model, callbacks[where], epochs=5, validation_data=(X, Y))
    plain, _ = started()
    run(plain, [], epochs=2)
    for got, wanted in zip(model.variables, plain.variables, strict=True):
        got, wanted = (keras.ops.convert_to_numpy(one.value) for one in (got, wanted))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    run(model, [], validation_data=(X, Y))
    assert "evaluate" not in vars(model)


def test_an_interruption_at_the_end_of_training_leaves_its_weights():
    model, recorder = started()
    with pytest.raises(KeyboardInterrupt):
        run(model, [recorder, WeightAveraging(Broken(1))], epochs=3)
    np.testing.assert_array_equal(kernel(model), recorder.epochs[-1])


def test_a_second_fit_has_averages_of_its_own():
    model, recorder = started()
    averaging = WeightAveraging(X)
    run(model, [averaging, recorder], epochs=2)
    run(model, [averaging, recorder], epochs=2)
    np.testing.assert_allclose(kernel(model), np.mean(recorder.epochs[2:], 0), rtol=1e-5, atol=1e-6)


def test_data_that_can_be_read_once_is_refused():
    with pytest.raises(TypeError, match="more than once") as raised:
        WeightAveraging(iter([X]))
    assert str(raised.value) == (
        "WeightAveraging: data must be readable more than once; got list_iterator. Pass a list of "
        "batches or an array."
    )


def test_missing_data_is_refused():
    with pytest.raises(TypeError, match="data must be") as raised:
        WeightAveraging(None)
    assert str(raised.value) == (
        "WeightAveraging: data must be a list of batches or an array; got None."
    )


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
