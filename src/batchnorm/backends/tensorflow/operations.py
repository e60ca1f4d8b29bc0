"""TensorFlow's array operations under the core's names; see `batchnorm.backends`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from batchnorm.backends.tensorflow.constants import constant

where = tf.where
log = tf.math.log
expm1 = tf.math.expm1
sqrt = tf.sqrt
rsqrt = tf.math.rsqrt
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


def fill(x: tf.Tensor, condition: tf.Tensor, value: float) -> tf.Tensor:
    """x with this value where the condition holds."""
    return tf.where(condition, tf.constant(value, x.dtype), x)


def is_tensor(value: Any) -> bool:
    return isinstance(value, (tf.Tensor, tf.Variable))


def left_out(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor | None:
    """Where a value is not finite and its weight is 0; None where it is known that none is."""
    return equal(weights, 0) & ~isfinite(x)


def stop_where(condition: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """y, constant where the condition holds."""
    return where(condition, stop_gradient(y), y)


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


def mean(x: tf.Tensor, axes: Any) -> tf.Tensor:
    """The average over these axes; 0 of no values.

    What is left over a first average is added up too: TensorFlow adds rows one after the other, a
    million are off by 1e-3 of their sum, and by nothing where that is near zero. One dimension at a
    time, so that few rows follow each other: 16-bit values less their average all round alike.
    """
    number = _number(x, axes)
    number = max(number, 1.0) if isinstance(number, float) else tf.maximum(number, 1)
    rough = _sum_in_turn(x, axes) / number
    return rough + _sum_in_turn(x - rough, axes) / number


def _sum_in_turn(x: tf.Tensor, axes: Any) -> tf.Tensor:
    for axis in axes:
        x = sum(x, axis)
    return x


def long_sum(x: tf.Tensor, axes: Any) -> tf.Tensor:
    """The sum of many numbers, as exact as their `mean`."""
    return mean(x, axes) * _number(x, axes)


def near(x: tf.Tensor, axes: Any) -> tf.Tensor:
    """Something near the mean over these axes that takes no sum: a value of each channel."""
    first = x[tuple(slice(1) if i in axes else slice(None) for i in range(x.shape.rank))]
    return first if x.shape.num_elements() else sum(first, axes)  # which may be empty


def subtract(x: tf.Tensor, y: tf.Tensor, times: float = 1.0, into: Any = None) -> tf.Tensor:
    """x - times * y. `into`, memory that may be overwritten, is for PyTorch, here and below."""
    return x - (y if times == 1 else y * times)


def add_product(
    x: tf.Tensor,
    y: tf.Tensor,
    z: tf.Tensor,
    times: float = 1.0,
    dtype: str | None = None,
    into: Any = None,
) -> tf.Tensor:
    """x + times * y * z, in this type."""
    result = x + y * (z if times == 1 else z * times)
    return result if dtype is None else cast(result, dtype)


def product(x: tf.Tensor, y: tf.Tensor, dtype: str, into: Any = None) -> tf.Tensor:
    """x * y, in this type."""
    return cast(x * y, dtype)


def _number(x: tf.Tensor, axes: Any) -> Any:
    """How many numbers each sum over these axes adds, in their type where only the run knows."""
    sizes = shape(x)
    number = 1
    for axis in axes:
        number = number * sizes[axis]
    return tf.cast(number, x.dtype) if is_tensor(number) else float(number)


def products(x: tf.Tensor) -> tf.Tensor:
    """Of each row and all behind it."""
    return tf.math.cumprod(x, 0, reverse=True)


def indices(x: tf.Tensor) -> tf.Tensor:
    """The numbers of x's rows, `[G, 1]`."""
    return tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None]


def pin(x: tf.Tensor) -> tf.Tensor:
    """x to within an ulp, as a value that XLA cannot see through; see JAX's."""
    bits = tf.bitcast(x, tf.int64 if x.dtype == tf.float64 else tf.int32)
    return tf.bitcast(tf.bitwise.bitwise_and(bits, tf.constant(-2, bits.dtype)), x.dtype)


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


def with_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.custom_gradient` of a function of tensors alone.

    In a conditional of TensorFlow 1 its inputs hang on the predicate, and where that is a variable,
    TensorFlow (2.21) takes the function for one that uses variables: they have no gradient.
    """

    def wrapped(*operands: Any) -> Any:
        result, gradient = function(*operands)

        def of_tensors(*upstream: Any, variables: Any = None) -> Any:
            found = gradient(*upstream)
            return (found, [None] * len(variables)) if variables else found

        return result, of_tensors

    made: Callable[..., Any] = tf.custom_gradient(wrapped)
    return made
