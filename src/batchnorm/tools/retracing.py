"""Compiled Keras models that must trace their steps again: `trace_anew`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

STEPS = ("train_function", "test_function", "predict_function")


def trace_anew(layers: Iterable[Any]) -> None:
    """Every model that holds one of these Keras layers, at any depth, forgets its compiled steps.

    Options of a layer are constants in them. A layer does not know the models around it: the
    garbage collector knows every model there is.
    """
    changed = {id(layer) for layer in layers}
    if not changed:
        return
    kind = sys.modules["keras"].Model
    for one in gc.get_objects():
        if not issubclass(type(one), kind) or all(vars(one).get(step) is None for step in STEPS):
            continue
        if any(id(layer) in changed for layer in one._flatten_layers()):
            for step in STEPS:
                setattr(one, step, None)
