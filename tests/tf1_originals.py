"""The originals, live under TensorFlow 2.21: tf_keras' legacy layer and tf_slim's `batch_norm`.

tf_slim 1.1.0 was written for names that TensorFlow has moved since; they are put back here.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any


@functools.cache
def layers() -> Any:
    """The module with the original `batch_normalization` and `BatchNormalization`."""
    from tf_keras.src.legacy_tf_layers import normalization

    return normalization


@functools.cache
def slim() -> Any:
    """`tf_slim.layers.layers`, able to run."""
    import tensorflow as tf
    from tensorflow.python.framework import ops
    from tensorflow.python.layers import normalization
    from tensorflow.python.ops import control_flow_ops

    ops.Tensor = tf.Tensor
    control_flow_ops.cond = tf.cond
    normalization.BatchNormalization = layers().BatchNormalization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tf_slim.layers import layers as module
    return module


def batch_normalization(*args: Any, **kwargs: Any) -> Any:
    """The original `tf.compat.v1.layers.batch_normalization`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return layers().batch_normalization(*args, **kwargs)


def batch_norm(*args: Any, **kwargs: Any) -> Any:
    """The original `tf.contrib.layers.batch_norm`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return slim().batch_norm(*args, **kwargs)
