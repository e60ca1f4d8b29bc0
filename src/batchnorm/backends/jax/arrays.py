"""The functions of `kernels.py` in JAX's array operations: for the CPU of a process whose kernels
are a GPU's alone. What is remembered has no function here: see `derivatives.remember`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from batchnorm._moments import Moments
from batchnorm.backends import composite, derivative
from batchnorm.backends.fused import ACTIVATIONS, case_of
from batchnorm.backends.jax import operations


def moments(x: Array, weights: Array | None) -> list[Array]:
    found, _ = composite.measured(operations, x, case_of(x.shape, weights, 1.0, ACTIVATIONS[None]))
    return list(found)


def standardize(
    x: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    residual: Array | None = None,
) -> Array:
    mean, remainder, variance, count, scale, offset, _ = given
    used = Moments(mean, remainder, variance, count)
    case = case_of(x.shape, weights, epsilon, activation)
    wide, linear = x.astype(variance.dtype), case._replace(activation=None)
    y = composite.standardize(operations, wide, linear, used, scale, offset)
    if residual is not None:
        y = y + residual.astype(y.dtype)
    return composite.activated(operations, y, case.activation).astype(x.dtype)


def forward(
    x: Array,
    weights: Array | None,
    scale: Array | None,
    offset: Array | None,
    epsilon: float,
    activation: int,
    residual: Array | None = None,
) -> list[Array]:
    found = moments(x, weights)
    given = (*found, scale, offset, None)
    return [standardize(x, weights, given, epsilon, activation, residual), *found]


class _Sums:
    """In the place of replicas: both sums as they are over all of them."""

    def __init__(self, sums: Sequence[Array]) -> None:
        self.sums = sums

    def all_reduce(self, own: Array) -> Array:
        return jnp.concatenate(self.sums, 1)


def backward(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    frozen: bool,
    sums: Sequence[Array] | None = None,
) -> list[Array]:
    mean, remainder, variance, count, scale, offset, live = given
    # both, for their derivatives: a factor of 1 and a summand of 0 change nothing
    scale = jnp.ones_like(mean) if scale is None else scale
    offset = jnp.zeros_like(mean) if offset is None else offset
    slopes = derivative.backward(
        operations, x, dy, case_of(x.shape, weights, epsilon, activation),
        Moments(mean, remainder, variance, count), scale, offset,
        None if live is None else live != 0, frozen, None if sums is None else _Sums(sums),
    )  # fmt: skip
    return [slopes.x, slopes.offset, slopes.scale]


def backward_sums(
    x: Array, dy: Array, weights: Array | None, given: Any, epsilon: float, activation: int
) -> list[Array]:
    return backward(x, dy, weights, given, epsilon, activation, frozen=True)[1:]


def backward_input(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    sums: Sequence[Array],
    epsilon: float,
    activation: int,
) -> Array:
    return backward(x, dy, weights, given, epsilon, activation, False, sums)[0]
