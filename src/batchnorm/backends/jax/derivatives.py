"""The kernels with their derivatives, as JAX functions of arrays.

`affine` is the pair (scale, offset), which has derivatives besides x; weights and moments are
constants and have none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from batchnorm._moments import Moments
from batchnorm.backends.fused import ACTIVATIONS, Sizes, Vectors
from batchnorm.backends.jax import calls as own_kernels
from batchnorm.backends.jax import sharding as kernels
from batchnorm.backends.jax.linear import How, Point, tangent
from batchnorm.backends.jax.meshes import explicit, varying, varying_alike
from batchnorm.backends.jax.replicas import Replicas
from batchnorm.backends.loading import missing


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
    residual: jax.Array | None = None,
) -> Any:
    """y, then what `moments` returns."""
    how = How(epsilon, activation, False, None)
    if residual is not None:
        both = (jnp.reshape(x, sizes), jnp.reshape(residual, sizes))
        operands = varying_alike((*both, (scale, offset), weights))
        y, *measured = _forward_add(how, *operands)
        return jnp.reshape(y, x.shape), *map(jax.lax.stop_gradient, measured)
    operands = varying_alike((jnp.reshape(x, sizes), (scale, offset), weights))
    y, *measured = _forward(how, *operands)
    return jnp.reshape(y, x.shape), *map(jax.lax.stop_gradient, measured)


def standardize(
    x: jax.Array,
    sizes: Sizes,
    weights: jax.Array | None,
    given: Vectors,
    epsilon: float,
    activation: int,
    frozen: bool,
    replicas: Replicas | None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """y; with `replicas`, the moments came from x on all of them, and there is no residual."""
    how = How(epsilon, activation, frozen, None if frozen else replicas)
    constants = (weights, given._replace(scale=None, offset=None))
    if residual is not None:
        both = (jnp.reshape(x, sizes), jnp.reshape(residual, sizes))
        operands = varying_alike((*both, (given.scale, given.offset), constants))
        return jnp.reshape(_standardize_add(how, *operands), x.shape)
    operands = varying_alike((jnp.reshape(x, sizes), (given.scale, given.offset), constants))
    return jnp.reshape(_standardize(how, *operands), x.shape)


def remember(
    state: Mapping[str, jax.Array],
    measured: Moments,
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, jax.Array] | None:
    """The plain moving averages after a step, by one kernel; None where it does not hold them.

    Meshes and maps partition what is written in JAX's own operations, and no kernel; and the CPU
    may have no kernels where a GPU has some.
    """
    held = dict.fromkeys(("moving_mean", "moving_variance"), measured.mean.dtype)
    held |= {name: jnp.int32 for name in ("skipped_updates", "num_updates") if name in state}
    if jax.device_count() > 1 or missing("jax") is not None:
        return None
    if any(state[name].dtype != one for name, one in held.items()):
        return None
    old = {name: jax.lax.stop_gradient(state[name]) for name in held}
    if any(varying(one) or explicit(one) for one in (*measured, *old.values())):
        return None
    return own_kernels.remember(measured, old, momentum, unbiased, propagate)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize(how: How, x: Any, affine: Any, constants: Any) -> Any:
    weights, given = constants
    given = given._replace(scale=affine[0], offset=affine[1])
    return kernels.standardize(x, weights, given, how.epsilon, how.activation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward(how: How, x: Any, affine: Any, weights: Any) -> Any:
    scale, offset = affine
    return tuple(kernels.forward(x, weights, scale, offset, how.epsilon, how.activation))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize_add(how: How, x: Any, residual: Any, affine: Any, constants: Any) -> Any:
    if not _is_whole(x):
        y = _standardize(how._replace(activation=ACTIVATIONS[None]), x, affine, constants)
        return _added(how, y, residual)
    weights, given = constants
    given = given._replace(scale=affine[0], offset=affine[1])
    operands = (x, weights, given, how.epsilon, how.activation)
    return own_kernels.standardize(*operands, residual)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward_add(how: How, x: Any, residual: Any, affine: Any, weights: Any) -> Any:
    if not _is_whole(x):
        y, *measured = _forward(how._replace(activation=ACTIVATIONS[None]), x, affine, weights)
        return (_added(how, y, residual), *measured)
    scale, offset = affine
    numbers = (how.epsilon, how.activation)
    return tuple(own_kernels.forward(x, weights, scale, offset, *numbers, residual))


def _is_whole(x: Any) -> bool:
    """Whether a kernel sees all of x, or one's own part: nothing to partition."""
    return jax.device_count() == 1 or bool(varying(x))


def _added(how: How, y: Any, residual: Any) -> Any:
    y = y + residual
    return jnp.where(y <= 0, 0, y) if how.activation == ACTIVATIONS["relu"] else y


def _standardize_change(how: How, at: Any, change: Any) -> Any:
    x, affine, constants = at
    return _standardize(how, *at), _change(how, change, Point(x, affine, *constants))


def _forward_change(how: How, at: Any, change: Any) -> Any:
    x, affine, weights = at
    y, *measured = _forward(how, *at)
    mean, remainder, variance, count = measured
    given = Vectors(mean, remainder, variance, count, None, None, None)
    dy = _change(how, change, Point(x, affine, weights, given))
    return (y, *measured), (dy, *map(jnp.zeros_like, measured))


def _standardize_add_change(how: How, at: Any, change: Any) -> Any:
    x, _, affine, constants = at
    y = _standardize_add(how, *at)
    return y, _change_of_sum(how, change, y, Point(x, affine, *constants))


def _forward_add_change(how: How, at: Any, change: Any) -> Any:
    x, _, affine, weights = at
    y, *measured = _forward_add(how, *at)
    mean, remainder, variance, count = measured
    given = Vectors(mean, remainder, variance, count, None, None, None)
    dy = _change_of_sum(how, change, y, Point(x, affine, weights, given))
    return (y, *measured), (dy, *map(jnp.zeros_like, measured))


def _change_of_sum(how: How, change: Any, y: Any, at: Point) -> Any:
    """The change of y with a residual: y says what the activation passes on."""
    dx, dresidual, *others = change
    total = _change(how._replace(activation=ACTIVATIONS[None]), (dx, *others), at)
    if not isinstance(dresidual, SymbolicZero):
        total = total + dresidual
    return jnp.where(y > 0, total, 0) if how.activation == ACTIVATIONS["relu"] else total


def _change(how: How, change: Any, at: Point) -> Any:
    """The change of y; what does not change is left out of the program."""
    dx, affine, _ = jax.tree.map(
        lambda one: None if isinstance(one, SymbolicZero) else one,
        change,
        is_leaf=lambda one: isinstance(one, SymbolicZero),
    )
    if dx is None and affine == (None, None):  # a constant's change counts nothing
        return jnp.zeros_like(at.x)
    return tangent(how, (dx, affine), at)


_standardize.defjvp(_standardize_change, symbolic_zeros=True)
_forward.defjvp(_forward_change, symbolic_zeros=True)
_standardize_add.defjvp(_standardize_add_change, symbolic_zeros=True)
_forward_add.defjvp(_forward_add_change, symbolic_zeros=True)
