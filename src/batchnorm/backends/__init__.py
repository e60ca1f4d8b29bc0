"""One file per framework: a few array operations, and the two big steps.

Every file here defines the same functions with the same signatures (tests/backends holds them to
it); `composite.py` writes the big steps in terms of the small ones. The core picks a backend from
the tensor it is given, so that one process can use all three frameworks.

    row(x, shape)           a vector as `[R, C]`, or `(C,)` where that broadcasts like it
    per_channel(x, shape)   a row as the kernels take it, in full
    known(mask)             True where all of it is and its values are at hand, else the mask
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def backend_of(x: Any) -> ModuleType:
    """The backend whose tensor x is.

    Raises:
        TypeError: x is not a tensor of a supported framework.
    """
    # A framework that was never imported cannot have made x, so none is imported here.
    loaded = sys.modules
    if "torch" in loaded and isinstance(x, loaded["torch"].Tensor):
        from batchnorm.backends import torch

        return torch
    if "jax" in loaded and isinstance(x, loaded["jax"].Array):
        from batchnorm.backends import jax

        return jax
    if "tensorflow" in loaded:
        from batchnorm.backends import tensorflow

        if tensorflow.is_tensor(x):
            return tensorflow
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise TypeError(
        f"batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got {kind}. Convert it first, "
        "for example with jax.numpy.asarray."
    )


def why_not(subject: Any) -> str | None:
    """Why there is no fused path here, in a sentence; None where there is one.

    Args:
        subject: a framework ("tensorflow", "jax" or "torch"), or a tensor of one, which may lie on
            a device that has none.

    Raises:
        TypeError, ValueError: the subject is neither.
    """
    if not isinstance(subject, str):
        return backend_of(subject).why_not(subject)
    if subject not in ("tensorflow", "jax", "torch"):
        raise ValueError(
            f"why_not: subject must be tensorflow, jax, torch or one of their tensors; "
            f"got {subject!r}."
        )
    return importlib.import_module(f"batchnorm.backends.{subject}").UNAVAILABLE
