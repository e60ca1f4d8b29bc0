"""TensorFlow's array operations under the core's names; see `batchnorm.backends`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from batchnorm.backends.tensorflow.constants import constant

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
relu = tf.nn.relu
rsqrt = tf.math.rsqrt


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


def products(x: tf.Tensor) -> tf.Tensor:
    """Of each row and all behind it."""
    return tf.math.cumprod(x, 0, reverse=True)


def indices(x: tf.Tensor) -> tf.Tensor:
    """The numbers of x's rows, `[G, 1]`."""
    return tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None]


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


def cond(predicate: tf.Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """What `yes` or `no` returns; one of them runs."""
    return tf.cond(predicate, yes, no)
