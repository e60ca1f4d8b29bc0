"""JAX. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm._moments import Moments
from batchnorm.backends import composite

_ops = sys.modules[__name__]
UNAVAILABLE: str | None = "The native kernels have no binding for this framework yet."

where = jnp.where
sqrt = jnp.sqrt
maximum = jnp.maximum
minimum = jnp.minimum
isfinite = jnp.isfinite
all = jnp.all
ones_like = jnp.ones_like
zeros_like = jnp.zeros_like
reshape = jnp.reshape
transpose = jnp.transpose
broadcast_to = jnp.broadcast_to
stop_gradient = jax.lax.stop_gradient


def is_tensor(value: Any) -> bool:
    return isinstance(value, jax.Array)


def asarray(value: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(value)


def dtype(x: Any) -> str:
    return str(x.dtype)


def cast(x: Any, dtype: str) -> jax.Array:
    return jnp.asarray(x, dtype)


def shape(x: Any) -> tuple[Any, ...]:
    return tuple(x.shape)


runtime_shape = shape


def full(shape: Sequence[Any], value: Any, dtype: str, like: jax.Array) -> jax.Array:
    return jnp.full(shape, value, dtype)


def sum(x: jax.Array, axes: Any) -> jax.Array:
    return jnp.sum(x, axes, keepdims=True)


wide_sum = sum  # no float64 without jax_enable_x64


def pin(x: jax.Array, dtype: str) -> jax.Array:
    """x to within an ulp, as a value that compilers cannot see through.

    XLA on the CPU fuses `x - total * (1 / n)` into one multiply-add, which then uses another, more
    exact shift than the next use of it. Clearing the last bit by integers keeps it one value;
    `optimization_barrier` does not (it is dropped before the fusion, JAX 0.10.2).
    """
    x = jnp.asarray(x, dtype)
    bits = jax.lax.bitcast_convert_type(x, "int64" if dtype == "float64" else "int32")
    return jax.lax.bitcast_convert_type(bits & -2, dtype)


def concrete_bool(value: Any) -> bool | jax.Array:
    if isinstance(value, jax.core.Tracer):
        return value.astype(bool)
    return bool(value)


def check(condition: Any, error: type[Exception], message: str, value: jax.Array) -> jax.Array:
    """value, unless the condition is false: then the error, at run time under jit."""

    def fail_unless(condition: Any) -> None:
        if not condition:
            raise error(message)

    if isinstance(condition, jax.core.Tracer):
        jax.debug.callback(fail_unless, condition)
    else:
        fail_unless(condition)
    return value


def check_one_replica(owner: str) -> None:
    """Nothing to check: under jit with a sharded batch statistics are global by construction."""


def recomputing() -> bool:
    """False: `jax.checkpoint` recomputes pure functions, whose state is returned once."""
    return False


def why_not(x: jax.Array) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    return UNAVAILABLE


def moments(x: jax.Array, weights: jax.Array | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    return composite.moments(_ops, x, weights)


def standardize(
    x: jax.Array,
    moments: Moments,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
    weights: jax.Array | None,
    live: bool | jax.Array,
    activation: str | None,
    fused: bool,
) -> jax.Array:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which."""
    return composite.standardize(_ops, x, moments, scale, offset, epsilon, weights, activation)


def forward(
    x: jax.Array,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
    weights: jax.Array | None,
    activation: str | None,
    fused: bool,
) -> tuple[jax.Array, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    measured = moments(x, weights, False)
    return standardize(
        x, measured, scale, offset, epsilon, weights, True, activation, False
    ), measured


def affine(
    u: jax.Array, scale: jax.Array | None, offset: jax.Array | None, activation: str | None
) -> jax.Array:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)
