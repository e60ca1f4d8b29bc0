"""Shapes and types of what the kernels return, for an x that is the view `[A, G, B, C, D]`."""

from __future__ import annotations

from jax import Array, ShapeDtypeStruct
from jax import numpy as jnp

from batchnorm.backends.composite import statistics_dtype


def like(x: Array) -> ShapeDtypeStruct:
    return ShapeDtypeStruct(x.shape, x.dtype)


def vectors(x: Array, number: int) -> list[ShapeDtypeStruct]:
    """So many per-channel vectors `[G, C]`."""
    return [ShapeDtypeStruct((x.shape[1], x.shape[3]), statistics(x))] * number


def moments(x: Array) -> list[ShapeDtypeStruct]:
    """Mean, remainder and variance, and the count `[G, 1]`."""
    return [*vectors(x, 3), ShapeDtypeStruct((x.shape[1], 1), statistics(x))]


def statistics(x: Array) -> jnp.dtype:
    """The type of moments and statistics."""
    return jnp.dtype(statistics_dtype(str(x.dtype)))
