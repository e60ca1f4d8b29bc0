"""The options of a TensorFlow 1 layer, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from batchnorm._options import Options, unit_interval

MOMENTA = {"momentum": "momentum", "renorm_momentum": "renorm_momentum"}


def checked(
    *, dtype: tf.DType, owner: str, known_as: Mapping[str, str] = MOMENTA, **options: Any
) -> Options:
    """`Options`, with tensors among them cast to the type of the statistics.

    Args:
        known_as: what the caller's arguments are called for the momenta.

    Raises:
        TypeError, ValueError: see `Options`.
    """
    for name, known in known_as.items():
        if options[name] is None:  # no state here counts its updates, no original has this
            raise TypeError(f"{owner}: {known} must be a number in [0, 1]; got None.")
        options[name] = unit_interval(owner, known, options[name])
        if isinstance(options[name], (tf.Tensor, tf.Variable)):
            options[name] = tf.cast(options[name], dtype)
    clipping = options["renorm_clipping"]
    if isinstance(clipping, Mapping):
        for name, value in clipping.items():
            if callable(value):
                raise TypeError(
                    f"{owner}: renorm_clipping must hold numbers or tensors; got a function for "
                    f"{name}. Make a tensor of it, from the global step or a placeholder."
                )
    if options["fused"] is True:
        options["fused"] = None  # only a wish, in every TensorFlow 1 function
    return Options(owner=owner, **options)
