"""Batch normalization in every mode, for TensorFlow, JAX and PyTorch.

Importing this package imports no framework. `batchnorm.keras` follows Keras' own backend.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchnorm._batch_norm import batch_norm, init
from batchnorm.backends import why_not

__version__ = "0.1.0"
__all__ = ["__version__", "batch_norm", "init", "set_synchronized", "why_not"]

# What needs a framework is imported when it is asked for.
_LATER = {"set_synchronized": "batchnorm.keras.synchronized"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
