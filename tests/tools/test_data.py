"""What counts as one array, as several inputs, and as batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import batchnorm
from batchnorm.tools.arguments import Arguments
from batchnorm.tools.data import Batches
from tool_models import dense, rows

pytestmark = pytest.mark.keras

X, Z = rows(40), rows(40, seed=1, mean=-5.0)
LABELS = np.zeros(40)


def read(model, data, size=16):
    """The shapes that reach the model."""
    batches = Batches(model, data, size, None, "test")
    read_ = [batch.args[0] if isinstance(batch, Arguments) else batch for batch in batches]
    shapes = [
        [one.shape for one in batch] if isinstance(batch, (list, tuple)) else batch.shape
        for batch in read_
    ]
    assert batches.total in (None, len(shapes))
    return shapes


@pytest.mark.parametrize(
    "data",
    [([X, Z], LABELS), ([X, Z], LABELS, LABELS), ([X, Z], [LABELS, LABELS]), ((X, Z), LABELS)],
    ids=["list", "weights", "labels", "tuple"],
)
def test_several_inputs_with_labels_are_read_as_keras_reads_them(data):
    """They were two batches: the inputs, and the labels."""
    two = [(16, 5), (16, 5)]
    assert read(dense("ours"), data) == [two, two, [(8, 5), (8, 5)]]


def test_several_inputs_reach_a_model_of_several_inputs():
    first, second = keras.Input((5,)), keras.Input((5,))
    sum_ = keras.layers.Add()([first, second])
    model = keras.Model([first, second], keras.layers.BatchNormalization(name="norm")(sum_))
    batchnorm.reestimate(model, ([X, Z], LABELS))
    mean = keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean.value)
    np.testing.assert_allclose(mean, (X + Z).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    "data",
    [
        [X[:24], X[24:]],
        ((X[:24], LABELS[:24]), (X[24:], LABELS[24:])),
        [(X[:24], LABELS[:24]), X[24:]],
    ],
    ids=["list", "tuple of pairs", "mixed list"],
)
def test_batches_stay_batches(data):
    for model in (dense("ours"), torch.nn.BatchNorm1d(5)):
        assert read(model, data) == [(24, 5), (16, 5)]


def test_lists_in_a_tuple_are_pairs_of_a_loader_for_torch():
    data = ([X[:24], LABELS[:24]], [X[24:], LABELS[24:]])
    assert read(torch.nn.BatchNorm1d(5), data) == [(24, 5), (16, 5)]


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (([X, Z[:20]], LABELS), "40, 20, 40"),
        (([X[:9], Z[:9]], [X[9:], Z[9:]]), "9, 9, 31, 31"),
        (({"x": X}, LABELS[:8]), "40, 8"),
    ],
    ids=["inputs", "batches", "labels"],
)
def test_parts_of_unequal_length_are_refused(data, counts):
    with pytest.raises(ValueError, match="rows") as raised:
        batchnorm.reestimate(dense("ours"), data)
    assert str(raised.value) == (
        "reestimate: data in a tuple (x, labels) must have as many rows in each part; got "
        f"{counts}. Pass batches in a list."
    )
