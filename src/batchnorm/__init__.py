"""Batch normalization in every mode, for TensorFlow, JAX and PyTorch.

Importing this package imports no framework. `batchnorm.keras` follows Keras' own backend.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchnorm._batch_norm import batch_norm, init
from batchnorm.backends import why_not

__version__ = "0.1.0"
# What needs a framework, or takes time to load, is imported when it is asked for.
_LATER = {
    "explain": "tools.explanation",
    "fold": "tools.folding",
    "freeze": "tools.freezing",
    "frozen": "tools.freezing",
    "inspect": "tools.inspection",
    "reestimate": "tools.reestimation",
    "reestimated": "tools.reestimation",
    "repair": "tools.repairing",
    "set_synchronized": "tools.synchronization",
    "unfreeze": "tools.freezing",
}
__all__ = ["__version__", "batch_norm", "init", "why_not", *_LATER]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"batchnorm.{_LATER[name]}"), name)
