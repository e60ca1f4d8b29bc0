"""JAX. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm import _native
from batchnorm._moments import Moments
from batchnorm._native.jax_axes import explicit, varying_alike
from batchnorm.backends import composite, jax_replicas
from batchnorm.backends.callers import callers
from batchnorm.backends.composite import Sizes
from batchnorm.backends.fused import ACTIVATIONS, Vectors, recomputed, vectors
from batchnorm.backends.jax_replicas import Replicas

_ops = sys.modules[__name__]
UNAVAILABLE = _native.load_operators("jax")
if UNAVAILABLE is None:
    from batchnorm._native import jax as own_kernels
    from batchnorm._native import jax_sharding as kernels

where = jnp.where
sqrt = jnp.sqrt
add = jnp.add
multiply = jnp.multiply
maximum = jnp.maximum
minimum = jnp.minimum
isfinite = jnp.isfinite
equal = jnp.equal
all = jnp.all
ones_like = jnp.ones_like
zeros_like = jnp.zeros_like
transpose = jnp.transpose
broadcast_to = jnp.broadcast_to
per_channel = broadcast_to  # see `batchnorm.backends`
concatenate = jnp.concatenate
replicas = jax_replicas.replicas
aligned = jax_replicas.aligned
all_gather = jax_replicas.all_gather
sum_of_zeros = jax_replicas.sum_of_zeros
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


def reshape(x: jax.Array, shape: Any) -> jax.Array:
    try:
        return jnp.reshape(x, shape)
    except Exception as error:  # JAX (0.10.2) has no public name for it
        if not explicit(x):
            raise
        raise ValueError(
            f"batch_norm: JAX cannot reshape {jax.typeof(x)} to {tuple(shape)} over the explicit "
            "axes of a mesh. Call batch_norm in jax.sharding.auto_axes."
        ) from error


row = reshape  # see `batchnorm.backends`


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


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the compiled program will know it."""
    return None if isinstance(value, jax.core.Tracer) else value.item()


def on_host(tensors: Sequence[Any]) -> list[Any] | None:
    """None: where a call's own cost matters, JAX compiles it away."""
    return None


def remembered(
    state: Mapping[str, Any], moments: Moments, momentum: float, unbiased: bool, propagate: bool
) -> dict[str, Any] | None:
    """None: see `on_host`."""
    return None


def known(mask: jax.Array) -> jax.Array:
    return mask


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


def recomputing() -> bool:
    """False: `jax.checkpoint` recomputes pure functions, whose state is returned once."""
    return False


def why_not(x: jax.Array) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if UNAVAILABLE is None and jax.default_backend() != "cpu":
        return f"The native kernels run on the CPU; JAX runs on {jax.default_backend()}."
    if any(not isinstance(size, int) for size in x.shape):
        return "A size is symbolic, as in an export, which cannot hold native kernels."
    if explicit(x):
        return "The kernels know no explicit axes of a mesh; jax.sharding.auto_axes hides them."
    if isinstance(x, jax.core.Tracer) and any(callers("_export.py")):
        return "An export (jax.export) cannot hold native kernels."
    return UNAVAILABLE


def moments(x: jax.Array, sizes: Sizes, weights: jax.Array | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    if not fused:
        return composite.moments(_ops, x, sizes, weights)
    x = reshape(x, sizes)
    return Moments(*kernels.moments(*varying_alike((stop_gradient(x), weights))))


def standardize(
    x: jax.Array,
    sizes: Sizes,
    moments: Moments,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
    weights: jax.Array | None,
    live: bool | jax.Array,
    activation: str | None,
    fused: bool,
    replicas: Replicas | None = None,
) -> jax.Array:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which.

    With `replicas`, the moments came from x on all of them.
    """
    if not fused:
        return composite.standardize(
            _ops, x, sizes, moments, scale, offset, epsilon, weights, activation
        )
    whole, x = shape(x), reshape(x, sizes)
    given = vectors(_ops, sizes, moments, scale, offset, live)
    constants = (weights, given._replace(scale=None, offset=None))
    static = (epsilon, ACTIVATIONS[activation], live is False, replicas)
    affine = (given.scale, given.offset)
    return reshape(_standardize(static, *varying_alike((x, affine, constants))), whole)


def forward(
    x: jax.Array,
    sizes: Sizes,
    scale: jax.Array | None,
    offset: jax.Array | None,
    epsilon: float,
    weights: jax.Array | None,
    activation: str | None,
    fused: bool,
) -> tuple[jax.Array, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    if not fused:
        measured = moments(x, sizes, weights, False)
        return standardize(
            x, sizes, measured, scale, offset, epsilon, weights, True, activation, False
        ), measured
    _, g, _, c, _ = sizes
    affine = tuple(None if v is None else jnp.broadcast_to(v, (g, c)) for v in (scale, offset))
    static = (epsilon, ACTIVATIONS[activation], False, None)
    y, *measured = _forward(static, *varying_alike((reshape(x, sizes), affine, weights)))
    return reshape(y, shape(x)), Moments(*measured)


def affine(
    u: jax.Array, scale: jax.Array | None, offset: jax.Array | None, activation: str | None
) -> jax.Array:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)


# The derivatives. `static` is (epsilon, activation, frozen, replicas); `affine` is the pair that
# has a gradient besides x; weights and moments are constants and get zeros.


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
        both = jax_replicas.all_reduce(jnp.concatenate((sum_dy, sum_dy_xh), 1), replicas)
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
            return recomputed(_ops, x, x.shape, weights, full, *static)

        return jax.vjp(y_of, x, affine)[1](dy)

    return *jax.vjp(gradients, x, dy, affine)[1](upstream), _zeros(constants)


def _zeros(constants: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, constants)


_standardize.defvjp(_standardize_save, _standardize_derivative)
_forward.defvjp(_forward_save, _forward_derivative)
_backward.defvjp(_backward_save, _backward_derivative)
