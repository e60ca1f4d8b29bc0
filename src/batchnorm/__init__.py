"""Batch normalization in every mode, for TensorFlow, JAX and PyTorch.

Importing this package imports no framework. `batchnorm.keras` follows Keras' own backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from batchnorm._batch_norm import batch_norm, init
from batchnorm.backends import why_not

# What needs a framework, or takes time to load, is imported when it is asked for: type checkers
# are told here what the others find below.
if TYPE_CHECKING:
    from batchnorm.tools.explanation import explain
    from batchnorm.tools.folding import fold
    from batchnorm.tools.freezing import freeze, frozen, unfreeze
    from batchnorm.tools.inspection import inspect
    from batchnorm.tools.reestimation import reestimate, reestimated
    from batchnorm.tools.repairing import repair
    from batchnorm.tools.synchronization import set_synchronized
    from batchnorm.tools.transferring import transfer

__version__ = "0.2.0"
__all__ = [
    "__version__",
    "batch_norm",
    "explain",
    "fold",
    "freeze",
    "frozen",
    "init",
    "inspect",
    "reestimate",
    "reestimated",
    "repair",
    "set_synchronized",
    "transfer",
    "unfreeze",
    "why_not",
]
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
    "transfer": "tools.transferring",
    "unfreeze": "tools.freezing",
}

if not TYPE_CHECKING:  # a checker that saw it would take every misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module 'batchnorm' has no attribute {name!r}")
        return getattr(importlib.import_module(f"batchnorm.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    """Every public name, and what has been imported."""
    return sorted({*globals(), *__all__})
