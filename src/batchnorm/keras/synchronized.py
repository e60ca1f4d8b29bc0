"""Synchronization as a switch of layers that are there: nothing is replaced."""

from __future__ import annotations

from typing import Any

import keras

from batchnorm._options import Options
from batchnorm.keras.base import BatchNormalizationBase
from batchnorm.tools.retracing import trace_anew


def set_synchronized(model: keras.layers.Layer, synchronized: Any) -> list[str]:
    """The names of the batch-norm layers that take their statistics over all replicas from now on.

    Every layer of `batchnorm.keras` in the model, at any depth, keeps its variables, options and
    optimizer slots, and only its attribute `synchronized` changes. `fit` traces its step anew, that
    of models around this one too; a function that you compiled yourself must be compiled again.

    Args:
        model: a Keras model, or a layer that holds others.
        synchronized: True, False, or what else `batchnorm.batch_norm` takes.

    Raises:
        TypeError: model is no Keras layer, or synchronized is none of these.
        ValueError: the model holds no layer of ours, or, to be synchronized, one of Keras' own
            (TensorFlow only, and without a mask only). No layer has been changed then.
    """
    Options(synchronized=synchronized, owner="set_synchronized")
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"set_synchronized: model must be a Keras model or layer; got {model!r}.")
    # Keras (3.15) has no public walk over nested layers.
    found = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    ours = [layer for layer in found if isinstance(layer, BatchNormalizationBase)]
    if not ours:
        raise ValueError(
            "set_synchronized: model must hold a batch-norm layer of batchnorm.keras; got "
            f"{model.name!r} with {len(found)} of Keras' own. Build it with "
            "batchnorm.keras.BatchNormalization."
        )
    theirs = [layer.name for layer in found if not isinstance(layer, BatchNormalizationBase)]
    if theirs and synchronized:
        raise ValueError(
            "set_synchronized: model must hold no batch-norm layers of Keras' own; got "
            f"{theirs}. Build it with batchnorm.keras.BatchNormalization."
        )
    for layer in ours:
        layer.synchronized = synchronized
    trace_anew(ours)
    return [layer.name for layer in ours]
