"""Normalization with moments that a subclass measures: across replicas, of masked values, ...

The path of an override of `_moments` or `_calculate_mean_and_var`. It is the composite one, in
TensorFlow's own operations, and differentiates through whatever the override does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from batchnorm._arguments import PARAMETERS
from batchnorm._axes import View, product
from batchnorm._correction import correct
from batchnorm._moments import Moments, constant
from batchnorm._open import by_training, open_view
from batchnorm._options import Options
from batchnorm._plan import plan
from batchnorm._rows import Rows, row_of
from batchnorm._run import run
from batchnorm._statistics import next_state
from batchnorm.backends import tensorflow as ops
from batchnorm.backends.composite import Case, standardize

Tensor = Any
# (inputs, reduction axes, whether these stay with size 1, mask) -> mean, variance
Measure = Callable[[Tensor, list[int], bool, Any], tuple[Tensor, Tensor]]


def moments(
    inputs: Tensor, reduction_axes: Sequence[int], keep_dims: bool, mask: Any, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the axes, second derivatives included (D31).

    Args:
        mask: False excludes a position; of the sizes off `axes`, or the first few of them.
        axes: the dimensions of the inputs that are features.
    """
    over = list(reduction_axes)
    if mask is None:
        mean = tf.reduce_mean(inputs, over, keepdims=True)
        shifted = inputs - mean
        rest = tf.reduce_mean(shifted, over, keepdims=True)  # what the mean was rounded by
        variance = tf.reduce_mean(tf.square(shifted - rest), over, keepdims=True)
    else:
        weights = _spread_mask(tf.convert_to_tensor(mask), inputs, axes)
        inputs = tf.where(tf.equal(weights, 0), tf.zeros_like(inputs), inputs)
        weights = tf.broadcast_to(weights, tf.shape(inputs))
        total = tf.reduce_sum(weights, over, keepdims=True)

        def mean_of(values: Tensor) -> Tensor:
            sums = tf.reduce_sum(weights * values, over, keepdims=True)
            return tf.math.divide_no_nan(sums, total)

        mean = mean_of(inputs)
        rest = mean_of(inputs - mean)
        variance = mean_of(tf.square(inputs - mean - rest))
    mean = mean + rest
    if keep_dims:
        return mean, variance
    return tf.squeeze(mean, over), tf.squeeze(variance, over)


def _spread_mask(mask: Tensor, inputs: Tensor, axes: Sequence[int]) -> Tensor:
    free = [i for i in range(inputs.shape.rank) if i not in axes]
    shape: list[Any] = [1] * inputs.shape.rank
    for size, i in zip(ops.shape(mask), free, strict=False):
        shape[i] = size
    return tf.reshape(tf.cast(mask, inputs.dtype), shape)


def normalize_with(
    measure: Measure,
    options: Options,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    training: bool | Tensor,
    mask: Any,
    batch_weights: Any,
    update_from: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`batchnorm._batch_norm.normalize`, with the batch's moments as `measure` says.

    `measure` gets the mask too, and sees ghost batches as the originals laid them out: the inputs
    as `[virtual_batch_size, groups, ...]`, with the groups among what is kept.
    """
    options = replace(options, fused=False)

    def way(training: bool, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = plan(ops, options, x, training, weighted=False)
        if not chosen.batch:
            return run(ops, chosen, x, parameters, state)
        view = chosen.view or open_view(ops, chosen, x)
        wide = ops.cast(x, chosen.dtype)
        measured = _measured(measure, options.owner, view, view.apart(ops, wide), mask)
        old = Rows(ops, view, state, chosen.dtype)
        gamma, beta = (
            row_of(ops, view.row_shape, parameters.get(name), chosen.dtype) for name in PARAMETERS
        )
        by = correct(ops, chosen, view, wide, old, (gamma, beta), constant(ops, measured))
        case = Case(view, None, options.epsilon, by.activation)
        y = standardize(ops, wide, case, measured, by.scale, by.offset)
        y = ops.cast(y if by.after is None else by.after(y), ops.dtype(x))
        if not chosen.update:
            return y, dict(state)
        return y, next_state(
            ops, chosen, old if update_from is None else old.of(update_from), measured
        )

    if isinstance(training, bool):
        return way(training, x)
    return by_training(ops, options, x, training, way)


def _measured(measure: Measure, owner: str, view: View, laid: Tensor, mask: Any) -> Moments:
    """What the override returns, as rows."""
    kept, keep_dims = set(view.axes), len(view.axes) > 1
    if view.groups is not None:
        kept, keep_dims = {1, *(axis + 1 for axis in view.axes)}, True
        if mask is not None:
            mask = tf.convert_to_tensor(mask)
            mask = tf.reshape(mask, (*view.split[:2], *ops.shape(mask)[1:]))
    reduced = [i for i in range(len(view.split)) if i not in kept]
    returned = measure(laid, reduced, keep_dims, mask)
    rows = (view.rows if view.groups is None else view.groups, view.row_shape[1])
    shape = tuple(None if ops.is_tensor(size) else size for size in rows)
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ValueError(f"{owner}: _moments must return (mean, variance); got {returned!r}.")
    mean, variance = (ops.cast(tf.convert_to_tensor(one), ops.dtype(laid)) for one in returned)
    for one in (mean, variance):
        number = one.shape.num_elements()
        if number is not None and None not in shape and number != product(shape):
            raise ValueError(
                f"{owner}: _moments must return {product(shape)} means and variances; got the "
                f"shape {tuple(one.shape.as_list())} for an input of shape "
                f"{tuple(laid.shape.as_list())} and the reduced axes {reduced}."
            )
    mean, variance = (tf.reshape(one, rows) for one in (mean, variance))
    count = tf.fill((rows[0], 1), tf.cast(view.values_per_group, mean.dtype))
    return Moments(mean, tf.zeros_like(mean), variance, count)
