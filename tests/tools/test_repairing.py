"""Repair: dead statistics come back, sound ones stay as they are."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from tool_models import KINDS, dense, rows, statistics, weights_of

pytestmark = pytest.mark.keras

X = rows(40)


def poisoned(kind: str, **values: float) -> keras.Model:
    """A model that fits its data but for channel 2 of its first layer."""
    model = dense(kind)
    batchnorm.reestimate(model, X)
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
