"""Batch normalization of TensorFlow 1: change `tf.` to `batchnorm.tf1.` in the call.

    tf.layers.batch_normalization                     batchnorm.tf1.layers.batch_normalization
    tf.contrib.layers.batch_norm                      batchnorm.tf1.contrib.layers.batch_norm
    tf.compat.v1.keras.layers.BatchNormalization      batchnorm.tf1.keras.layers.BatchNormalization

`restore` reads checkpoints, those of TensorFlow 1.x renorm layers too; `patch_tf_slim` gives
tf_slim's networks our function.

Everything is imported at its first use: only `keras` needs Keras, and only the rest TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchnorm.tf1 import contrib, keras, layers
    from batchnorm.tf1._checkpoints import restore
    from batchnorm.tf1._slim import patch_tf_slim

__all__ = ["contrib", "keras", "layers", "patch_tf_slim", "restore"]

_FUNCTIONS = {"restore": "_checkpoints", "patch_tf_slim": "_slim"}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"batchnorm.tf1.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"batchnorm.tf1.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
