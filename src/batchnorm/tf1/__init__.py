"""Batch normalization of TensorFlow 1: change `tf.` to `batchnorm.tf1.` in the call.

    tf.layers.batch_normalization                     batchnorm.tf1.layers.batch_normalization
    tf.contrib.layers.batch_norm                      batchnorm.tf1.contrib.layers.batch_norm
    tf.compat.v1.keras.layers.BatchNormalization      batchnorm.tf1.keras.layers.BatchNormalization

`restore` reads checkpoints, those of TensorFlow 1.x renorm layers too.

`batchnorm.tf1.keras` is imported at its first use: only it needs Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchnorm.tf1 import contrib, layers
from batchnorm.tf1._checkpoints import restore

__all__ = ["contrib", "keras", "layers", "restore"]


def __getattr__(name: str) -> Any:
    if name == "keras":
        return importlib.import_module("batchnorm.tf1.keras")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
