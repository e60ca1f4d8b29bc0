"""Compiled passes are kept with the model, and never outlive what they were compiled for."""

from __future__ import annotations

import gc
import pickle
import weakref

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.tools import keeping
from tool_models import KINDS, dense, pieces, rows, statistics, weights_of

pytestmark = pytest.mark.keras

X = rows(64)
BACKEND = keras.backend.backend()
COMPILES = pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled on torch")


def programs(model: keras.Model) -> dict:
    return vars(model)[keeping._NAME][1]


@COMPILES
def test_a_second_call_of_a_tool_runs_the_program_of_the_first():
    model = dense("ours")
    batchnorm.inspect(model, X)
    (first,) = programs(model).values()
    batchnorm.inspect(model, X)
    assert list(programs(model).values()) == [first]


@COMPILES
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_does_not_run_the_python_of_the_layers(kind, monkeypatch):
    model = dense(kind)
    batchnorm.reestimate(model, X)
    monkeypatch.setattr(keeping.Program, "_passes", None)
    batchnorm.reestimate(model, X)


@COMPILES
def test_training_between_two_calls_leaves_the_program_kept():
    model = dense("ours")
    model.compile("sgd", "mse")
    batchnorm.reestimate(model, X)
    (first,) = programs(model).values()
    for _ in range(2):
        model.fit(X, np.zeros((64, 3)), verbose=0)
        batchnorm.reestimate(model, X)
    assert list(programs(model).values()) == [first]


@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_are_seen(kind):
    model, other = dense(kind), dense(kind)
    batchnorm.reestimate(model, X)
    model.set_weights(other.get_weights())
    batchnorm.reestimate(model, X)
    batchnorm.reestimate(other, X)
    for one, two in zip(statistics(model.layers[2]), statistics(other.layers[2]), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_is_seen(kind):
    model = dense(kind)
    assert batchnorm.inspect(model, X).rows[0].drift > 1
    model.get_layer("first").trainable = False
    assert batchnorm.inspect(model, X).rows[0].drift == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [(1, "activation", keras.activations.tanh), (0, "epsilon", 1e4), (0, "scale", False)],
)
def test_another_option_of_a_layer_is_seen(kind, layer, name, value):
    model = dense(kind)
    batchnorm.reestimate(model, X)
    setattr(model.layers[layer], name, value)
    fresh = dense(kind)
    fresh.set_weights(model.get_weights())
    setattr(fresh.layers[layer], name, value)
    batchnorm.reestimate(model, X)
    batchnorm.reestimate(fresh, X)
    for one, two in zip(statistics(model.layers[2]), statistics(fresh.layers[2]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_interrupted_call_of_a_kept_program_leaves_the_model_bit_for_bit():
    model = dense("ours")
    batchnorm.reestimate(model, X)
    before = weights_of(model)

    def batches():
        yield X[:9] + 1
        raise KeyboardInterrupt

    for tool in (batchnorm.inspect, batchnorm.reestimate):
        with pytest.raises(KeyboardInterrupt):
            tool(model, batches())
    assert weights_of(model) == before


def test_batches_of_other_sizes_run_in_a_kept_program():
    model = dense("ours")
    batchnorm.reestimate(model, X)
    assert batchnorm.reestimate(model, pieces(X, 20, 1)).batches == 3


def test_no_more_programs_are_kept_than_is_said():
    model = dense("ours")
    for name in range(keeping.AT_MOST + 3):
        keeping.program(model, [], str(name), [])
    assert BACKEND == "torch" or len(programs(model)) == keeping.AT_MOST


def test_a_kept_program_does_not_keep_its_model():
    model = dense("ours")
    batchnorm.inspect(model, X)
    gone = weakref.ref(model)
    del model
    keras.utils.clear_session()
    gc.collect()
    assert gone() is None


def test_a_model_with_a_kept_program_can_be_pickled():
    model = dense("ours")
    batchnorm.inspect(model, X)
    copy = pickle.loads(pickle.dumps(model))
    assert keeping._NAME not in vars(copy)
    assert weights_of(copy) == weights_of(model)
