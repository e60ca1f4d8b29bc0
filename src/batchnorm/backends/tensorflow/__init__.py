"""TensorFlow. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

from typing import Any

from batchnorm.backends import fused, steps
from batchnorm.backends.tensorflow import derivatives, inference, lean, operations
from batchnorm.backends.tensorflow.operations import *  # noqa: F403
from batchnorm.backends.tensorflow.place import recomputing, traced, unavailable, why_not
from batchnorm.backends.tensorflow.replicas import aligned, all_gather, find_replicas

HOST = on_host = None  # graphs compute on vectors themselves
COMPOSITE = steps.Steps(operations, inference.infer, lean.standardize)
KERNELS = fused.Steps(operations, derivatives, adds=True)


def kernels_for(x: Any) -> fused.Steps | str:
    """The kernels where x is, or why there are none: what `why_not` says."""
    return why_not(x) or KERNELS
