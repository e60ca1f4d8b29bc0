"""Constants of eager TensorFlow, kept: making one takes as long as an operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tensorflow as tf


def constant(make: Callable[..., tf.Tensor], *arguments: Any) -> tf.Tensor:
    """make(*arguments), a small tensor that nothing else decides. A graph gets one of its own."""
    return (_kept if tf.executing_eagerly() else _made)(make, *arguments)


def _made(make: Callable[..., tf.Tensor], *arguments: Any) -> tf.Tensor:
    return make(*arguments)


@lru_cache(maxsize=512)
def _kept(make: Callable[..., tf.Tensor], *arguments: Any) -> tf.Tensor:
    # not where the first caller happened to work, which may be another machine
    with tf.device(None), tf.device("CPU:0"):
        return make(*arguments)
