"""TensorFlow. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm._native.tensorflow_constants import constant
from batchnorm.backends import composite, tensorflow_operators, tensorflow_replicas
from batchnorm.backends.callers import callers
from batchnorm.backends.composite import Sizes
from batchnorm.backends.fused import ACTIVATIONS, vectors
from batchnorm.backends.host import HELD
from batchnorm.backends.tensorflow_replicas import Replicas

_ops = sys.modules[__name__]
UNAVAILABLE = tensorflow_operators.UNAVAILABLE
if UNAVAILABLE is None:
    from batchnorm._native import tensorflow as kernels

where = tf.where
sqrt = tf.sqrt
maximum = tf.maximum
minimum = tf.minimum
isfinite = tf.math.is_finite
equal = tf.equal  # not `==`, which asks for identity in a TensorFlow 1 graph
all = tf.reduce_all
ones_like = tf.ones_like
zeros_like = tf.zeros_like
transpose = tf.transpose
concatenate = tf.concat
replicas = tensorflow_replicas.replicas
aligned = tensorflow_replicas.aligned
all_gather = tensorflow_replicas.all_gather
sum_of_zeros = tensorflow_replicas.sum_of_zeros


def is_tensor(value: Any) -> bool:
    return isinstance(value, (tf.Tensor, tf.Variable))


def asarray(value: Any, like: tf.Tensor) -> tf.Tensor:
    array = isinstance(value, (np.ndarray, np.generic))  # a constant asks around less
    return tf.constant(value) if array else tf.convert_to_tensor(value)


def dtype(x: Any) -> str:
    return _name(x.dtype)


@cache
def _name(dtype: Any) -> str:
    return tf.as_dtype(dtype).base_dtype.name


def cast(x: Any, dtype: str) -> tf.Tensor:
    return x if isinstance(x, tf.Tensor) and _name(x.dtype) == dtype else tf.cast(x, dtype)


def reshape(x: Any, shape: Sequence[Any]) -> tf.Tensor:
    if _has_shape(x, shape):
        return x
    if tf.executing_eagerly() and _known(shape):
        return tf.raw_ops.Reshape(tensor=x, shape=constant(tf.constant, tuple(shape), tf.int64))
    return tf.reshape(x, shape)


def broadcast_to(x: Any, shape: Sequence[Any]) -> tf.Tensor:
    return x if _has_shape(x, shape) else tf.broadcast_to(x, shape)


def stop_gradient(x: Any) -> tf.Tensor:
    return tf.raw_ops.StopGradient(input=x)  # tf.stop_gradient asks around first


def row(x: Any, shape: Sequence[Any]) -> tf.Tensor:
    """x as `[R, C]`; `(C,)` broadcasts like `[1, C]` as it stands, and has no reshape to undo."""
    x = x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x)
    return x if _is_row(x, shape) else reshape(x, shape)


def per_channel(x: tf.Tensor, shape: Sequence[Any]) -> tf.Tensor:
    """x as the kernels take it: as many elements as `shape`."""
    return x if _is_row(x, shape) else broadcast_to(x, shape)


def _is_row(x: Any, shape: Sequence[Any]) -> bool:
    """Whether x is `(C,)` and this is the shape `[1, C]`, for sure."""
    own = x.shape
    return own.rank == 1 and _known(shape) and [1, *own.as_list()] == list(shape)


def _has_shape(x: Any, shape: Sequence[Any]) -> bool:
    """Whether x is a tensor of this shape for sure: an eager operation takes 7 microseconds."""
    if not isinstance(x, tf.Tensor) or x.shape.rank is None:
        return False
    return _known(shape) and x.shape.as_list() == list(shape)


def _known(shape: Sequence[Any]) -> bool:
    return set(map(type, shape)) <= {int}


def shape(x: Any) -> Any:
    """Sizes, scalar int64 tensors where the graph leaves them open; None for an unknown rank."""
    known = x.shape
    if isinstance(known, tuple):  # a NumPy array's, which stands for a vector
        return known
    if known.rank is None:
        return None
    static = known.as_list()
    if None not in static:
        return tuple(static)
    dynamic = tf.shape(x, out_type=tf.int64)
    return tuple(dynamic[i] if size is None else size for i, size in enumerate(static))


def runtime_shape(x: tf.Tensor) -> tf.Tensor:
    return tf.shape(x)  # int32, as the originals give to `adjustment`


def full(shape: Sequence[Any], value: Any, dtype: str, like: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(tf.cast(value, dtype), shape)


def sum(x: tf.Tensor, axes: Any) -> tf.Tensor:
    return tf.reduce_sum(x, axes, keepdims=True)


def wide_sum(x: tf.Tensor, axes: Any) -> tf.Tensor:
    """In float64: TensorFlow adds rows one after the other, hundreds off after a million."""
    return tf.reduce_sum(tf.cast(x, tf.float64), axes, keepdims=True)


@tf.custom_gradient
def add(x: tf.Tensor, vector: tf.Tensor) -> Any:
    """x + vector, for a vector with x's rank and ones. Its derivative is summed in float64 too."""
    return x + vector, lambda dz: (dz, _summed_to(dz, vector))


@tf.custom_gradient
def multiply(x: tf.Tensor, vector: tf.Tensor) -> Any:
    """x * vector; see `add`."""
    return x * vector, lambda dz: (dz * vector, _summed_to(dz * x, vector))


def _summed_to(dz: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    ones = [i for i, size in enumerate(vector.shape.as_list()) if size == 1]
    return tf.cast(wide_sum(dz, ones), vector.dtype)


def pin(x: tf.Tensor, dtype: str) -> tf.Tensor:
    return tf.cast(x, dtype)  # the rounding from float64 is one that XLA keeps


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the graph's run will know it."""
    known = tf.get_static_value(tf.convert_to_tensor(value))
    return None if known is None else known.item()


def on_host(tensors: Sequence[Any]) -> list[Any] | None:
    """The values as NumPy arrays, where that is free, else None. Not to be written."""
    if not tf.executing_eagerly() or tf.distribute.has_strategy():
        return None
    if not builtins.all(dtype(one) in HELD for one in tensors):
        return None
    return [np.asarray(one) for one in tensors]


def remembered(
    state: Mapping[str, Any], moments: Moments, momentum: float, unbiased: bool, propagate: bool
) -> dict[str, Any] | None:
    """The plain moving averages after a step, by one kernel; None where it does not hold them."""
    held = {name: dtype(moments.mean) for name in ("moving_mean", "moving_variance")}
    held |= {name: "int32" for name in ("skipped_updates", "num_updates") if name in state}
    if builtins.any(dtype(state[name]) != one for name, one in held.items()):
        return None
    return kernels.remember(moments, state, momentum, unbiased, propagate)


def known(mask: tf.Tensor) -> tf.Tensor:
    return mask


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error (InvalidArgumentError in a graph).

    XLA drops assertions; there, what follows from the broken condition is all there is.
    """
    known = tf.get_static_value(tf.convert_to_tensor(condition))
    if known is None:
        with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
            return tf.identity(value)
    if not known:
        raise error(message)
    return value


def recomputing() -> bool:
    """Whether `tf.recompute_grad` is calling again, which would update statistics twice.

    TensorFlow (2.21) sets no mark, so the callers' names have to tell.
    """
    return any(
        frame.f_code.co_name == "inner_recompute_grad" for frame in callers("custom_gradient.py")
    )


def why_not(x: tf.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if UNAVAILABLE is None and _compiles_with_xla():
        return "XLA (jit_compile=True) cannot hold the native kernels."
    if UNAVAILABLE is None and tf.config.list_physical_devices("GPU"):
        return "The native kernels run on the CPU; TensorFlow has a GPU here."
    return UNAVAILABLE


def _compiles_with_xla() -> bool:
    """Whether a tf.function with jit_compile=True is being traced.

    A graph does not know what will compile it (TensorFlow 2.21); the tracer, which waits for it,
    holds the function's attributes.
    """
    if tf.executing_eagerly():
        return False
    options = (frame.f_locals.get("tracing_options") for frame in callers("tracing_compilation.py"))
    return any((getattr(one, "attributes", None) or {}).get("_XlaMustCompile") for one in options)


def moments(x: tf.Tensor, sizes: Sizes, weights: tf.Tensor | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    if not fused:
        return composite.moments(_ops, x, sizes, weights)
    x = reshape(x, sizes)
    return Moments(*kernels.moments(tf.stop_gradient(x), weights))


def standardize(
    x: tf.Tensor,
    sizes: Sizes,
    moments: Moments,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    weights: tf.Tensor | None,
    live: bool | tf.Tensor,
    activation: str | None,
    fused: bool,
    replicas: Replicas | None = None,
) -> tf.Tensor:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which.

    With `replicas`, the moments came from x on all of them.
    """
    if not fused:
        return composite.standardize(
            _ops, x, sizes, moments, scale, offset, epsilon, weights, activation
        )
    whole, x = shape(x), reshape(x, sizes)
    given = vectors(_ops, sizes, moments, scale, offset, live)
    if replicas is not None and live is not False:
        y = tensorflow_operators.standardize_over(
            replicas, x, weights, given, epsilon, ACTIVATIONS[activation]
        )
    else:
        how = (epsilon, ACTIVATIONS[activation], live is False)
        y = kernels.standardize(x, weights, given, *how)
    return reshape(y, whole)


def forward(
    x: tf.Tensor,
    sizes: Sizes,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    weights: tf.Tensor | None,
    activation: str | None,
    fused: bool,
) -> tuple[tf.Tensor, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    if not fused:
        measured = moments(x, sizes, weights, False)
        return standardize(
            x, sizes, measured, scale, offset, epsilon, weights, True, activation, False
        ), measured
    _, g, _, c, _ = sizes
    scale, offset = (None if v is None else per_channel(v, (g, c)) for v in (scale, offset))
    laid_out = reshape(x, sizes)
    y, *measured = kernels.forward(
        laid_out, weights, scale, offset, epsilon, ACTIVATIONS[activation]
    )
    return reshape(y, shape(x)), Moments(*measured)


def affine(
    u: tf.Tensor, scale: tf.Tensor | None, offset: tf.Tensor | None, activation: str | None
) -> tf.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)
