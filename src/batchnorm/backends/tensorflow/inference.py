"""Inference in TensorFlow's own operations, with one derivative whose sums are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batchnorm.backends.composite import SMALLEST, factors_of, statistics_dtype
from batchnorm.backends.tensorflow import operations
from batchnorm.backends.tensorflow.place import compiles_with_xla


def infer(
    x: tf.Tensor,
    view: Any,
    mean: tf.Tensor,
    variance: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
) -> tf.Tensor:
    """What `composite.affine_map` says: one operation where TensorFlow's says the same, in one pass
    over x; else three.
    """
    x = tf.convert_to_tensor(x)  # a derivative of our own takes no variable
    if _is_one_operation(x, view.axes, epsilon):
        return _in_one(x, mean, variance, scale, offset, epsilon)
    wide = statistics_dtype(operations.dtype(x))
    factor = view.spread(operations, factors_of(operations, variance, scale, epsilon).slope)
    mean = view.spread(operations, mean)
    minus_mean = mean * -1.0  # of a negation, Grappler makes a subtraction again
    if offset is not None:
        offset = view.spread(operations, offset)

    def y_of(x: tf.Tensor, factor: tf.Tensor, offset: tf.Tensor | None = None) -> tf.Tensor:
        # added, not subtracted: TensorFlow Lite folds that into a convolution in front
        y = (operations.cast(x, wide) + minus_mean) * factor
        return operations.cast(y if offset is None else y + offset, operations.dtype(x))

    return _mapped(y_of, x, view.axes, mean, 1.0, factor, offset)


def _is_one_operation(x: tf.Tensor, axes: tuple[int, ...], epsilon: float) -> bool:
    """Whether FusedBatchNormV3 takes x, and subtracts the mean first (TensorFlow 2.21 does).

    Not under XLA, which multiplies first and is 4e-3 off at |mean| / stddev = 1e5.
    """
    return (
        axes == (3,)
        and x.shape.rank == 4
        and x.dtype == tf.float32
        and epsilon >= SMALLEST
        and not compiles_with_xla()
    )


def _in_one(
    x: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
) -> tf.Tensor:
    channels = (x.shape[3],)
    mean, variance = (operations.reshape(one, channels) for one in (mean, variance))
    scale = tf.ones(channels) if scale is None else operations.reshape(scale, channels)
    offset = tf.zeros(channels) if offset is None else operations.reshape(offset, channels)

    def y_of(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
        how = {"mean": mean, "variance": variance, "epsilon": epsilon, "is_training": False}
        return tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=offset, **how).y

    inverse = factors_of(operations, variance, None, epsilon).inverse
    return _mapped(y_of, x, (3,), mean, inverse, scale, offset)


def _mapped(
    y_of: Callable[..., tf.Tensor],
    x: tf.Tensor,
    axes: tuple[int, ...],
    mean: tf.Tensor,
    inverse: Any,
    *vectors: tf.Tensor | None,
) -> tf.Tensor:
    """y_of(x, *vectors) = (x - mean) * inverse * scale + offset, of the vectors scale and offset.

    TensorFlow would add the derivatives of the vectors in float32, one row after the other, which
    is hundreds off after a million.
    """
    over = [i for i in range(x.shape.rank) if i not in axes]

    @operations.with_gradient
    def mapped(x: tf.Tensor, scale: tf.Tensor, *offset: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> list[tf.Tensor]:
            wide = operations.dtype(scale)
            dz = operations.cast(dy, wide)
            dx = operations.cast(dz * (inverse * scale), operations.dtype(x))
            centered = operations.cast(x, wide) - mean
            sums = [_summed(dz * centered, over, scale) * inverse]
            return [dx, *sums, *(_summed(dz, over, one) for one in offset)]

        return y_of(x, scale, *offset), gradient

    return mapped(x, *(one for one in vectors if one is not None))


def _summed(values: tf.Tensor, over: list[int], like: tf.Tensor) -> tf.Tensor:
    total = operations.cast(operations.long_sum(values, over), operations.dtype(like))
    return operations.reshape(total, like.shape.as_list())
