"""The names of outputs: those of the originals' last ops, which fetches look for."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

v1 = tf.compat.v1
FUSED = "FusedBatchNormV3"
COMPOSED = "batchnorm/add_1"
CONDITIONAL = "cond/Identity"
RESHAPED = "Reshape_1"


def layer_output(y: Any, *, fused: bool, grouped: bool, dynamic: bool) -> Any:
    """y under the name that `tf.layers` gave it.

    Args:
        fused: the original took its fused kernel.
        grouped: there are ghost batches.
        dynamic: `training` is a tensor.
    """
    if grouped:
        return named(y, RESHAPED)
    if not fused:
        return named(y, COMPOSED)
    return named(y, CONDITIONAL if dynamic else FUSED)


def contrib_output(
    y: Any, path: Any, *, dynamic: bool, in_place: bool, activation: str | None
) -> Any:
    """y under the name that `tf.contrib` gave it.

    Args:
        path: the implementation that the original took.
        in_place: computing y moves the statistics.
        activation: what the kernel computes besides, and the original in an op of its own.
    """
    if activation == "relu":
        return named(y, "Relu")
    if path.core:
        return layer_output(y, fused=path.unbiased, grouped=False, dynamic=dynamic)
    if path.flat:
        return named(y, RESHAPED)
    if not path.unbiased:
        return named(y, COMPOSED)
    if in_place:
        return named(y, "cond_1/Identity" if dynamic else "Identity")
    return named(y, CONDITIONAL if dynamic else FUSED)


def named(y: Any, name: str) -> Any:
    """y as the output of an op of this name in the current name scope."""
    scope, _, last = name.rpartition("/")
    if not scope:
        return tf.identity(y, name=last)
    with v1.name_scope(scope):
        return tf.identity(y, name=last)
