"""Models without batch normalization, for inference: `fold`."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm.tools.data import Batches
from batchnorm.tools.folds import Folding
from batchnorm.tools.norms import is_keras


def fold(model: Any, data: Any = None, steps: int | None = None, *, batch_size: int = 32) -> Any:
    """A new Keras model that computes the same in inference, without batch normalization.

    Each batch normalization goes into the linear layer before it, else into the one behind it,
    else into a batch normalization before it: Dense, Conv1D to 3D with groups, depthwise,
    separable and transposed convolutions. Weights are computed in float64 and cast once. Layers
    that do nothing in inference (dropout) may lie between.

    Where that would not be exact the layer stays: a shared layer, an activation in between, a
    second consumer, a normalization that adds an offset before a convolution that pads.
    `result.folding` lists what was folded, every refusal with its reason, and how far the outputs
    are apart on the data.

    The result is for inference: do not train it. The given model is not changed, nothing is shared.

    Args:
        model: a functional or sequential Keras model; models inside it are folded too.
        data, steps, batch_size: what the outputs are compared on, as for `reestimate`.

    Raises:
        TypeError, ValueError: the model is not such a model, or an argument is not what it must be.

    Reference: Jacob et al. 2018, "Quantization and training of neural networks", section 3.2.
    """
    if not is_keras(model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TypeError(
            f"fold: model must be a Keras model; got {kind}. For PyTorch modules there is "
            "torch.nn.utils.fusion."
        )
    from batchnorm.tools.rebuilding import Rebuilding, functional

    if functional(model) is None:
        raise ValueError(
            "fold: model must be functional or sequential with a known input shape, so that its "
            f"graph is known; got {type(model).__name__}."
        )
    batches = None if data is None else Batches(model, data, batch_size, steps, "fold")
    rebuilding = Rebuilding(model)
    result = rebuilding.model()
    folded, refused = tuple(rebuilding.folded), tuple(rebuilding.refused)
    difference = None if batches is None else largest_difference(model, result, batches)
    result.folding = Folding(folded, refused, difference)
    return result


def largest_difference(before: Any, after: Any, batches: Any) -> float:
    """The largest difference of two Keras models' outputs, relative to the largest output.

    NaN where one of them is NaN and the other is not.

    Raises:
        ValueError: there is no batch.
    """
    import keras

    largest = most = 0.0
    read = False
    for batch in batches:
        read = True
        pairs = [keras.tree.flatten(model(batch, training=False)) for model in (before, after)]
        for old, new in zip(*pairs, strict=True):
            was, now = (
                np.asarray(keras.ops.convert_to_numpy(one), np.float64) for one in (old, new)
            )
            with np.errstate(invalid="ignore"):
                same = (was == now) | (np.isnan(was) & np.isnan(now))
                apart = np.where(same, 0.0, np.abs(now - was))
            # NaN in one of the two stays: Python's max would pass it by
            largest = float(np.maximum(largest, np.max(apart, initial=0.0)))
            most = max(most, float(np.max(np.abs(was[np.isfinite(was)]), initial=0.0)))
    if not read:
        raise ValueError("fold: data must hold at least one row; got none.")
    return largest / most if most else largest
