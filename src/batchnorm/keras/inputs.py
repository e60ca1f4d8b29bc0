"""What a call of a layer is given: masks that Keras passes on, and ragged tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from batchnorm import _axes
from batchnorm._options import Options
from batchnorm._plan import decide

Tensor = Any


def mask_of(options: Options, inputs: Tensor, training: Any, mask: Tensor | None) -> Tensor | None:
    """The mask of a call: the one it was given, else the one that came with its input.

    The latter covers the dimensions before the last, from the left, as everywhere in Keras,
    whatever `axis` is. Nothing reads it where the moving statistics normalize and stay.

    Raises:
        ValueError: it covers a dimension of `axis` where statistics are taken.
    """
    # Keras passes it on as `mask` too, but only where no other argument is a tensor.
    attached = getattr(inputs, "_keras_mask", None)
    if attached is None or (mask is not None and mask is not attached):
        return mask
    known = (training,) if isinstance(training, bool) else (True, False)
    if not any(any(decide(options.statistics, options.update_statistics, one)) for one in known):
        return None
    rank, sizes = len(inputs.shape), tuple(attached.shape)
    axes = _axes.resolve(options.axis, rank, options.owner)
    if covered := [axis for axis in axes if axis < len(sizes) and sizes[axis] != 1]:
        raise ValueError(
            f"{options.owner}: a mask that comes with the input must not cover axis {covered[0]} "
            f"in training; got one of shape {sizes} for an input of shape {tuple(inputs.shape)}. "
            "Call the layer with a mask over the dimensions that are not in axis."
        )
    if not hasattr(attached, "flat_values"):
        for _ in range(rank - len(sizes)):
            attached = keras.ops.expand_dims(attached, -1)
    return attached


class Flat(NamedTuple):
    """What a call computes with; `restored` gives what comes of `inputs` its form back."""

    options: Options
    inputs: Tensor
    mask: Tensor | None
    batch_weights: Tensor | None
    restored: Callable[[Tensor], Tensor]


def flat(options: Options, inputs: Tensor, mask: Any, batch_weights: Any) -> Flat:
    """A call as it is, and of a ragged tensor its values: all that statistics are taken over.

    Raises:
        ValueError: an axis is ragged, or the call asks for what ragged tensors do not have.
    """
    if keras.backend.backend() != "tensorflow" or not hasattr(inputs, "flat_values"):
        return Flat(options, inputs, mask, batch_weights, lambda outputs: outputs)
    merged = inputs.ragged_rank  # so many dimensions and the one behind them are the first now
    axes = _axes.resolve(options.axis, len(inputs.shape), options.owner)
    for axis in axes:
        if axis <= merged:
            raise ValueError(
                f"{options.owner}: axis must be behind the ragged dimensions, in "
                f"[{merged + 1}, {len(inputs.shape) - 1}], for a ragged input; got {axis}."
            )
    for name in ("virtual_batch_size", "adjustment"):
        if (value := getattr(options, name)) is not None:
            raise ValueError(
                f"{options.owner}: {name} must be None for a ragged input; got {value!r}. Call "
                "the layer with a padded tensor and a mask."
            )
    own = dataclasses.replace(options, axis=tuple(axis - merged for axis in axes))
    weights = [
        _flat_weights(options, inputs, name, given)
        for name, given in (("mask", mask), ("batch_weights", batch_weights))
    ]
    return Flat(own, inputs.flat_values, weights[0], weights[1], inputs.with_flat_values)


def _flat_weights(options: Options, inputs: Tensor, name: str, given: Any) -> Tensor | None:
    """A mask or weights, ragged as the input or one per sample, for the input's values."""
    if given is None:
        return None
    if hasattr(given, "flat_values") and given.ragged_rank == inputs.ragged_rank:
        return given.flat_values
    if hasattr(given, "flat_values") or len(given.shape) != 1:
        raise ValueError(
            f"{options.owner}: {name} must be ragged like the input, or have one value per "
            f"sample; got one of shape {tuple(given.shape)} for a ragged input of shape "
            f"{tuple(inputs.shape)}."
        )
    for samples in inputs.nested_value_rowids():
        given = keras.ops.take(given, samples, axis=0)
    return given
