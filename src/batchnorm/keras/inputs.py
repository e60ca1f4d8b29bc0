"""What a call of a layer is given: masks that Keras passes on, and ragged tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras.src.backend.common.masking import get_keras_mask  # no public name (3.15)

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
    attached = get_keras_mask(inputs)
    # Keras passes it on as `mask` too, where no other argument is a tensor; a functional model
    # passes one that it computed once more.
    if attached is None or (mask is not None and tuple(mask.shape) != tuple(attached.shape)):
        return mask
    attached = attached if mask is None else mask
    known = (training,) if isinstance(training, bool) else (True, False)
    if not any(any(decide(options.statistics, options.update_statistics, one)) for one in known):
        return None
    rank, sizes = len(inputs.shape), tuple(attached.shape)
    axes = _axes.resolve(options.axis, rank, options.owner)
    if covered := [axis for axis in axes if axis < len(sizes) and sizes[axis] != 1]:
        raise ValueError(
            f"{options.owner}: a mask that comes with the input must not cover axis {covered[0]} "
            f"in training; got one of shape {sizes} for an input of shape {tuple(inputs.shape)}. "
            "Call the layer with a mask that has 1 there, or none of that dimension."
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
    residual: Tensor | None
    restored: Callable[[Tensor], Tensor]

    def arrays(self, dtype: str) -> dict[str, Tensor]:
        """x and, where there is one, the residual, in this type."""
        both = {"x": self.inputs, "residual": self.residual}
        return {name: keras.ops.cast(one, dtype) for name, one in both.items() if one is not None}


def flat(options: Options, inputs: Tensor, mask: Any, batch_weights: Any, residual: Any) -> Flat:
    """A call as it is, and of a ragged tensor its values: all that statistics are taken over.

    Raises:
        ValueError: an axis is ragged, or the call asks for what ragged tensors do not have.
    """
    if keras.backend.backend() != "tensorflow" or not hasattr(inputs, "flat_values"):
        return Flat(options, inputs, mask, batch_weights, residual, lambda outputs: outputs)
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
    mask, batch_weights = (
        _flat_weights(options, inputs, name, given)
        for name, given in (("mask", mask), ("batch_weights", batch_weights))
    )
    if residual is not None:
        residual = _flat_residual(options, inputs, residual)
    return Flat(own, inputs.flat_values, mask, batch_weights, residual, inputs.with_flat_values)


def _flat_residual(options: Options, inputs: Tensor, residual: Any) -> Tensor:
    if getattr(residual, "ragged_rank", 0) != inputs.ragged_rank:
        raise ValueError(
            f"{options.owner}: residual must be ragged like the input; got one of shape "
            f"{tuple(residual.shape)} for a ragged input of shape {tuple(inputs.shape)}."
        )
    return residual.flat_values


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
