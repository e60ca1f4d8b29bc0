"""JAX's array operations under the names that the core asks for; see `batchnorm.backends`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm.backends.jax.meshes import explicit, sharded_alike

log = jnp.log
expm1 = jnp.expm1
sqrt = jnp.sqrt
rsqrt = jax.lax.rsqrt
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
stop_gradient = jax.lax.stop_gradient
relu = jax.nn.relu


def is_tensor(value: Any) -> bool:
    return isinstance(value, jax.Array)


def where(condition: Any, yes: Any, no: Any) -> jax.Array:
    return jnp.where(*sharded_alike(condition, yes, no))


def fill(x: jax.Array, condition: jax.Array, value: float) -> jax.Array:
    """x with this value where the condition holds."""
    return where(condition, jnp.asarray(value, x.dtype), x)


def left_out(x: jax.Array, weights: jax.Array) -> jax.Array | None:
    """Where a value is not finite and its weight is 0; None where it is known that none is."""
    return equal(weights, 0) & ~isfinite(x)


def stop_where(condition: jax.Array, y: jax.Array) -> jax.Array:
    """y, constant where the condition holds."""
    return where(condition, stop_gradient(y), y)


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
            "axes of a mesh. Call batch_norm in jax.sharding.auto_axes, and give the function all "
            "that it reads as arguments, parameters and state too."
        ) from error


row = reshape  # see `batchnorm.backends`


def full(shape: Sequence[Any], value: Any, dtype: str, like: jax.Array) -> jax.Array:
    return jnp.full(shape, value, dtype)


def sum(x: jax.Array, axes: Any) -> jax.Array:
    return jnp.sum(x, axes, keepdims=True)


long_sum = sum


def mean(x: jax.Array, axes: Any) -> jax.Array:
    """The average over these axes; 0 of no values."""
    number = _number(x, axes)
    rough = sum(x, axes) / number
    return rough + sum(x - rough, axes) / number


def near(x: jax.Array, axes: Any) -> jax.Array:
    """Something near the mean over these axes, in 32 bits or more: a sum in 16 may overflow."""
    x = cast(x, "float64" if dtype(x) == "float64" else "float32")
    return pin(sum(x, axes) / _number(x, axes))


def _number(x: jax.Array, axes: Any) -> Any:
    """How many numbers each sum over these axes adds, or 1 for none."""
    number = math.prod(x.shape[axis] for axis in axes)
    return max(number, 1) if isinstance(number, int) else jnp.asarray(number, x.dtype)  # symbolic


def subtract(x: jax.Array, y: jax.Array, times: float = 1.0, into: Any = None) -> jax.Array:
    """x - times * y. `into`, memory that may be overwritten, is for PyTorch, here and below."""
    return x - y * times


def add_product(
    x: jax.Array,
    y: jax.Array,
    z: jax.Array,
    times: float = 1.0,
    dtype: str | None = None,
    into: Any = None,
) -> jax.Array:
    """x + times * y * z, in this type."""
    result = x + y * (z * times)
    return result if dtype is None else cast(result, dtype)


def product(x: jax.Array, y: jax.Array, dtype: str, into: Any = None) -> jax.Array:
    """x * y, in this type."""
    return cast(x * y, dtype)


def products(x: jax.Array) -> jax.Array:
    """Of each row and all behind it."""
    return jnp.cumprod(x[::-1], 0)[::-1]


def indices(x: jax.Array) -> jax.Array:
    """The numbers of x's rows, `[G, 1]`."""
    return jnp.arange(x.shape[0], dtype=x.dtype)[:, None]


def pin(x: jax.Array) -> jax.Array:
    """x to within an ulp, as a value that compilers cannot see through.

    XLA on the CPU fuses `x - total * (1 / n)` into one multiply-add, which then uses another, more
    exact shift than the next use of it. Clearing the last bit by integers keeps it one value;
    `optimization_barrier` does not (it is dropped before the fusion, JAX 0.10.2).
    """
    bits = jax.lax.bitcast_convert_type(x, "int64" if dtype(x) == "float64" else "int32")
    return jax.lax.bitcast_convert_type(bits & -2, x.dtype)


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the compiled program will know it."""
    return None if isinstance(value, jax.core.Tracer) else value.item()


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


def cond(predicate: jax.Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """What `yes` or `no` returns; one of them runs."""
    return jax.lax.cond(predicate, yes, no)
