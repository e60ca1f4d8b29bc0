"""JAX. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

from typing import Any

from batchnorm.backends import fused
from batchnorm.backends.jax import derivatives, moments, operations
from batchnorm.backends.jax.operations import *  # noqa: F403
from batchnorm.backends.jax.place import recomputing, traced, unavailable, why_not
from batchnorm.backends.jax.replicas import aligned, all_gather, find_replicas

HOST = on_host = None  # what is done with vectors, JAX compiles
COMPOSITE = moments.Steps(operations)
KERNELS = fused.Steps(operations, derivatives, adds=True)


def kernels_for(x: Any) -> fused.Steps | str:
    """The kernels where x is, or why there are none: what `why_not` says."""
    return why_not(x) or KERNELS
