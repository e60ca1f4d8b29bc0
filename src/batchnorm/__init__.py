"""Batch normalization in every mode, for TensorFlow, JAX and PyTorch.

Importing this package imports no framework. `batchnorm.keras` follows Keras' own backend.
"""

from __future__ import annotations

from batchnorm._batch_norm import batch_norm, init
from batchnorm.backends import why_not

__version__ = "0.1.0"
__all__ = ["__version__", "batch_norm", "init", "why_not"]
