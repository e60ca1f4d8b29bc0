"""Batch normalization in every mode, for TensorFlow, JAX and PyTorch.

Importing this package imports no framework. `batchnorm.keras` follows Keras' own backend.
"""

from __future__ import annotations

import importlib
from typing import Any

from batchnorm._batch_norm import batch_norm, init
from batchnorm.backends import why_not

__version__ = "0.1.0"
# The tools, by the module that holds them: NumPy and rich are loaded when the first one is used.
_TOOLS = {
    "explain": "explanation",
    "fold": "folding",
    "freeze": "freezing",
    "frozen": "freezing",
    "repair": "repairing",
    "unfreeze": "freezing",
    "inspect": "inspection",
    "reestimate": "reestimation",
    "reestimated": "reestimation",
}
__all__ = ["__version__", "batch_norm", "init", "why_not", *_TOOLS]


def __getattr__(name: str) -> Any:
    if name not in _TOOLS:
        raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"batchnorm.tools.{_TOOLS[name]}"), name)
