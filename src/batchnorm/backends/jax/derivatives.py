"""The kernels with their derivatives, as JAX functions of arrays.

`static` is (epsilon, activation, frozen, replicas); `affine` is the pair that has a gradient
besides x; weights and moments are constants and get zeros.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm._moments import Moments
from batchnorm.backends.fused import Sizes, Vectors, recomputed
from batchnorm.backends.jax import operations
from batchnorm.backends.jax.meshes import varying_alike
from batchnorm.backends.jax.place import UNAVAILABLE
from batchnorm.backends.jax.replicas import Replicas, all_reduce

if UNAVAILABLE is None:
    from batchnorm.backends.jax import kernels as own_kernels
    from batchnorm.backends.jax import sharding as kernels


def moments(x: jax.Array, sizes: Sizes, weights: jax.Array | None) -> Any:
    """Mean, remainder, variance and count: constants, whose derivative `standardize` has."""
    x = jax.lax.stop_gradient(jnp.reshape(x, sizes))
    return kernels.moments(*varying_alike((x, weights)))


def forward(
    x: jax.Array,
    sizes: Sizes,
    weights: jax.Array | None,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
    activation: int,
) -> Any:
    """y, then what `moments` returns."""
    static = (epsilon, activation, False, None)
    operands = varying_alike((jnp.reshape(x, sizes), (scale, offset), weights))
    y, *measured = _forward(static, *operands)
    return jnp.reshape(y, x.shape), *measured


def standardize(
    x: jax.Array,
    sizes: Sizes,
    weights: jax.Array | None,
    given: Vectors,
    epsilon: float,
    activation: int,
    frozen: bool,
    replicas: Replicas | None,
) -> jax.Array:
    """y; with `replicas`, the moments came from x on all of them."""
    constants = (weights, given._replace(scale=None, offset=None))
    operands = varying_alike((jnp.reshape(x, sizes), (given.scale, given.offset), constants))
    y = _standardize((epsilon, activation, frozen, replicas), *operands)
    return jnp.reshape(y, x.shape)


def remember(
    state: Any, measured: Moments, momentum: float, unbiased: bool, propagate: bool
) -> None:
    """None: where a call's own cost matters, JAX compiles it away."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _standardize(static: Any, x: Any, affine: Any, constants: Any) -> Any:
    weights, given = constants
    given = given._replace(scale=affine[0], offset=affine[1])
    return kernels.standardize(x, weights, given, *static[:2])


def _standardize_save(static: Any, x: Any, affine: Any, constants: Any) -> Any:
    return _standardize(static, x, affine, constants), (x, affine, constants)


def _standardize_derivative(static: Any, saved: Any, dy: Any) -> Any:
    x, affine, constants = saved
    dx, d_affine = _backward(static, x, dy, affine, constants)
    return dx, d_affine, _zeros(constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(static: Any, x: Any, affine: Any, weights: Any) -> Any:
    return tuple(kernels.forward(x, weights, *affine, *static[:2]))


def _forward_save(static: Any, x: Any, affine: Any, weights: Any) -> Any:
    y, mean, remainder, variance, count = _forward(static, x, affine, weights)
    given = Vectors(mean, remainder, variance, count, None, None, None)
    return (y, mean, remainder, variance, count), (x, affine, (weights, given))


def _forward_derivative(static: Any, saved: Any, upstream: Any) -> Any:
    x, affine, constants = saved
    dx, d_affine = _backward(static, x, upstream[0], affine, constants)
    return dx, d_affine, _zeros(constants[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward(static: Any, x: Any, dy: Any, affine: Any, constants: Any) -> Any:
    weights, given = constants
    scale, offset = affine
    given = given._replace(scale=scale, offset=offset)
    epsilon, activation, frozen, replicas = static
    how = (epsilon, activation)
    if replicas is None or frozen:
        dx, sum_dy, sum_dy_xh = kernels.backward(x, dy, weights, given, *how, frozen)
    else:  # each replica has a whole array of its own: nothing to partition
        sum_dy, sum_dy_xh = own_kernels.backward_sums(x, dy, weights, given, *how)
        both = all_reduce(jnp.concatenate((sum_dy, sum_dy_xh), 1), replicas)
        sums = jnp.split(both, 2, 1)
        dx = own_kernels.backward_input(x, dy, weights, given, sums, *how)
    return dx, (None if scale is None else sum_dy_xh, None if offset is None else sum_dy)


def _backward_save(static: Any, x: Any, dy: Any, affine: Any, constants: Any) -> Any:
    return _backward(static, x, dy, affine, constants), (x, dy, affine, constants)


def _backward_derivative(static: Any, saved: Any, upstream: Any) -> Any:
    """The derivative of `_backward`, by differentiating the composite path twice."""
    x, dy, affine, constants = saved
    weights, given = constants

    def gradients(x: Any, dy: Any, affine: Any) -> Any:
        def y_of(x: Any, affine: Any) -> Any:
            full = given._replace(scale=affine[0], offset=affine[1])
            return recomputed(operations, x, x.shape, weights, full, *static)

        return jax.vjp(y_of, x, affine)[1](dy)

    return *jax.vjp(gradients, x, dy, affine)[1](upstream), _zeros(constants)


def _zeros(constants: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, constants)


_standardize.defvjp(_standardize_save, _standardize_derivative)
_forward.defvjp(_forward_save, _forward_derivative)
_backward.defvjp(_backward_save, _backward_derivative)
