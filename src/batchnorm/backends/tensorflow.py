"""TensorFlow. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm.backends import composite

_ops = sys.modules[__name__]
UNAVAILABLE: str | None = "The native kernels have no binding for this framework yet."

where = tf.where
sqrt = tf.sqrt
maximum = tf.maximum
minimum = tf.minimum
isfinite = tf.math.is_finite
all = tf.reduce_all
ones_like = tf.ones_like
zeros_like = tf.zeros_like
reshape = tf.reshape
transpose = tf.transpose
broadcast_to = tf.broadcast_to
stop_gradient = tf.stop_gradient


def is_tensor(value: Any) -> bool:
    return isinstance(value, (tf.Tensor, tf.Variable))


def asarray(value: Any, like: tf.Tensor) -> tf.Tensor:
    return tf.convert_to_tensor(value)


def dtype(x: Any) -> str:
    return tf.as_dtype(x.dtype).base_dtype.name


def cast(x: Any, dtype: str) -> tf.Tensor:
    return tf.cast(x, dtype)


def shape(x: Any) -> tuple[Any, ...]:
    """Sizes; scalar int64 tensors where the graph leaves them open."""
    static = x.shape.as_list()
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


def pin(x: tf.Tensor, dtype: str) -> tf.Tensor:
    return tf.cast(x, dtype)  # the rounding from float64 is one that XLA keeps


def concrete_bool(value: Any) -> bool | tf.Tensor:
    value = tf.convert_to_tensor(value)
    known = tf.get_static_value(value)
    return tf.cast(value, tf.bool) if known is None else bool(known)


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


def check_one_replica(owner: str) -> None:
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise RuntimeError(
            f"{owner}: synchronized must be False with more than one replica in this version; "
            f"got True with {replicas} replicas."
        )


def recomputing() -> bool:
    """Whether `tf.recompute_grad` is calling again, which would update statistics twice.

    TensorFlow (2.21) sets no mark, so the callers' names have to tell.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "inner_recompute_grad" and "custom_gradient" in code.co_filename:
            return True
        frame = frame.f_back
    return False


def why_not(x: tf.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    return UNAVAILABLE


def moments(x: tf.Tensor, weights: tf.Tensor | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    return composite.moments(_ops, x, weights)


def standardize(
    x: tf.Tensor,
    moments: Moments,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    weights: tf.Tensor | None,
    live: bool | tf.Tensor,
    activation: str | None,
    fused: bool,
) -> tf.Tensor:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which."""
    return composite.standardize(_ops, x, moments, scale, offset, epsilon, weights, activation)


def forward(
    x: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    weights: tf.Tensor | None,
    activation: str | None,
    fused: bool,
) -> tuple[tf.Tensor, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    measured = moments(x, weights, False)
    return standardize(
        x, measured, scale, offset, epsilon, weights, True, activation, False
    ), measured


def affine(
    u: tf.Tensor, scale: tf.Tensor | None, offset: tf.Tensor | None, activation: str | None
) -> tf.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)
