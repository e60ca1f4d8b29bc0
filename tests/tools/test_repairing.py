"""Repair: dead statistics come back, sound ones stay as they are."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import batchnorm
from tool_models import KINDS, dense, rows, statistics, weights_of

pytestmark = pytest.mark.keras

X = rows(40)


def poisoned(kind: str, options: dict[str, Any] | None = None, **values: float) -> keras.Model:
    """A model that fits its data but for channel 2 of its first layer."""
    model = dense(kind, **(options or {}))
    model(X, training=True)  # so that what training remembers is not the moving statistics
    batchnorm.reestimate(model, X)
    model(X[:20], training=True)
    for name, value in values.items():
        variable = getattr(model.get_layer("first"), name)
        array = np.array(keras.ops.convert_to_numpy(variable.value))
        array[2] = value
        variable.assign(array)
    return model


POISON = [
    {"moving_mean": np.nan},
    {"moving_variance": np.inf},
    {"moving_variance": -1.0},
    {"moving_mean": -np.inf, "moving_variance": np.nan},
]


@pytest.mark.parametrize("poison", POISON, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_layer_is_re_estimated_and_the_others_stay(kind, poison):
    model = poisoned(kind, **poison)
    second = [one.tobytes() for one in statistics(model.get_layer("second"))]
    result = batchnorm.repair(model, X)
    assert str(result) == "first: 1 channel poisoned; re-estimated from the data."
    mean, variance = statistics(model.get_layer("first"))
    np.testing.assert_allclose(mean, X.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(variance, X.var(0, dtype=np.float64), rtol=1e-5)
    assert [one.tobytes() for one in statistics(model.get_layer("second"))] == second


def test_without_data_only_the_poisoned_channels_are_reset_and_it_says_so():
    model = poisoned("ours", moving_mean=np.nan)
    mean_before, variance_before = statistics(model.get_layer("first"))
    result = batchnorm.repair(model)
    assert str(result) == (
        "first: 1 channel poisoned; reset to mean 0 and variance 1, which are no statistics of "
        "anything: re-estimate with data before you rely on them."
    )
    mean, variance = statistics(model.get_layer("first"))
    assert (mean[2], variance[2]) == (0.0, 1.0)
    np.testing.assert_array_equal(np.delete(mean, 2), np.delete(mean_before, 2))
    np.testing.assert_array_equal(np.delete(variance, 2), np.delete(variance_before, 2))


RENORM = {"renorm": True}
BESIDE = [
    ("keras", RENORM, "renorm_mean", np.nan),
    ("keras", RENORM, "renorm_stddev", -1.0),
    ("keras", RENORM, "moving_stddev", np.inf),
    ("ours", RENORM, "renorm_mean", np.inf),
    ("ours", RENORM, "renorm_stddev", np.nan),
    ("ours", RENORM, "moving_stddev", -1.0),
    ("ours", {"zero_debias": "both"}, "biased_mean", np.nan),
    ("ours", {"zero_debias": "both"}, "biased_variance", -1.0),
    ("ours", {"zero_debias": "both"}, "local_step", np.nan),
    ("ours", {"zero_debias": "both", "renorm": True}, "biased_stddev", np.nan),
]


def all_statistics(layer) -> dict[str, np.ndarray]:
    return {
        one.name: np.array(keras.ops.convert_to_numpy(one.value))
        for one in layer.non_trainable_variables
        if tuple(one.shape) == (5,)
    }


@pytest.mark.parametrize(("kind", "options", "name", "value"), BESIDE, ids=str)
def test_what_only_training_reads_is_repaired_too(kind, options, name, value):
    """It was left: the layer put out NaN in training, and in evaluation after the next update."""
    model = poisoned(kind, options, **{name: value})
    layer = model.get_layer("first")
    before = all_statistics(layer)
    assert batchnorm.inspect(model, X).rows[0].poisoned == 1
    assert str(batchnorm.repair(model)) == (
        "first: 1 channel poisoned in what only training reads; set from its moving statistics."
    )
    after = all_statistics(layer)
    for one, array in after.items():
        if one.startswith("moving_") and one != name:
            np.testing.assert_array_equal(array, before[one])
        np.testing.assert_array_equal(np.delete(array, 2), np.delete(before[one], 2))
    y = keras.ops.convert_to_numpy(model(X, training=True))
    assert np.isfinite(y).all()
    assert all(np.isfinite(one).all() for one in all_statistics(layer).values())
    assert str(batchnorm.repair(model)) == "Nothing is poisoned."

    model = poisoned(kind, options, **{name: value})
    assert str(batchnorm.repair(model, X)) == (
        "first: 1 channel poisoned; re-estimated from the data."
    )
    np.testing.assert_allclose(statistics(model.get_layer("first"))[0], X.mean(0), rtol=1e-5)


def test_channels_that_lost_their_statistics_and_others_are_told_apart():
    model = poisoned("ours", RENORM, renorm_mean=np.nan)
    variable = model.get_layer("first").moving_mean
    variable.assign(np.array([1, np.nan, 3, 4, 5], np.float32))
    first, second = batchnorm.repair(model).layers
    assert (first.layer, first.channels, first.how) == ("first", (1,), "reset")
    assert (second.layer, second.channels, second.how) == ("first", (2,), "derived")
    np.testing.assert_array_equal(statistics(model.get_layer("first"))[0], [1, 0, 3, 4, 5])


def test_a_sound_model_is_left_bit_for_bit():
    model = poisoned("ours")
    before = weights_of(model)
    assert str(batchnorm.repair(model, X)) == "Nothing is poisoned."
    assert weights_of(model) == before


def test_data_that_is_never_finite_in_a_channel_is_reported():
    model = poisoned("ours", moving_mean=np.nan)
    bad = X.copy()
    bad[:, 2] = np.nan
    result = batchnorm.repair(model, bad)
    assert result.still == ("first",)
    assert "first: this data has no finite value for some of them." in str(result)
    assert np.isfinite(statistics(model.get_layer("first"))[0]).all()


def test_parameters_that_are_not_finite_are_named():
    model = poisoned("ours")
    beta = model.get_layer("second").beta
    beta.assign(np.full(beta.shape, np.inf, np.float32))
    assert str(batchnorm.repair(model)) == (
        "second: gamma or beta is not finite: only an older checkpoint can bring it back."
    )


def test_an_interruption_leaves_even_the_poison_bit_for_bit():
    model = poisoned("ours", moving_mean=np.nan)
    before = weights_of(model)

    def batches():
        yield X[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batchnorm.repair(model, batches())
    assert weights_of(model) == before


def test_torch_modules_are_repaired_too():
    import torch

    module = torch.nn.Sequential(torch.nn.BatchNorm1d(5))
    module[0].running_var[1] = float("nan")
    assert str(batchnorm.repair(module, X)) == "0: 1 channel poisoned; re-estimated from the data."
    np.testing.assert_allclose(module[0].running_var, X.var(0, ddof=1), rtol=1e-5)
