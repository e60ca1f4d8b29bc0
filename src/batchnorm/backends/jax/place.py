"""Who is calling JAX's side, and where: what decides whether the kernels may run."""

from __future__ import annotations

import jax

from batchnorm.backends.callers import callers
from batchnorm.backends.jax import device
from batchnorm.backends.jax.meshes import explicit
from batchnorm.backends.loading import load_operators


def unavailable() -> str | None:
    """Why there are no kernels where JAX's default device is, whatever is called."""
    return _here("float32")


def _here(dtype: str) -> str | None:
    return load_operators("jax") if jax.default_backend() == "cpu" else device.why_not(dtype)


def why_not(x: jax.Array) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if any(not isinstance(size, int) for size in x.shape):
        return "A size is symbolic, as in an export, which cannot hold native kernels."
    if explicit(x):
        return "The kernels know no explicit axes of a mesh; jax.sharding.auto_axes hides them."
    if traced(x) and any(callers("_export.py")):
        return "An export (jax.export) cannot hold native kernels."
    return _here(str(x.dtype))


def traced(x: jax.Array) -> bool:
    """Whether what is called now becomes a program that may run elsewhere."""
    return isinstance(x, jax.core.Tracer)


def recomputing() -> bool:
    """False: `jax.checkpoint` recomputes pure functions, whose state is returned once."""
    return False
