"""What a `tf_keras.Model` finds of a layer that it was given as an attribute.

Nothing of it happens where nobody has imported tf_keras.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def stand_ins(layer: Any) -> list[Any]:
    """A layer of tf_keras with the updates and losses, for a model that looks into modules.

    A model collects those from layers of tf_keras alone (2.21); it takes variables from any module.
    """
    tf_keras: Any = sys.modules.get("tf_keras")
    if tf_keras is None:
        return []
    made = tf_keras.layers.Layer(name=layer.name, trainable=layer.trainable)
    made._updates, made._losses = list(layer.updates), list(layer.losses)
    return [made]


def track(variables: Iterable[Any]) -> None:
    """Tells tf_keras which variables its session has to initialize before a model runs."""
    backend: Any = sys.modules.get("tf_keras.src.backend")
    if backend is not None:
        for one in variables:
            backend.track_variable(one)
