"""Models without batch normalization, for inference: `fold`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from batchnorm.tools.data import Batches, Caller
from batchnorm.tools.folds import Folding
from batchnorm.tools.forward import put_back, run_model
from batchnorm.tools.norms import check_model, is_keras, is_nnx, is_torch


def fold(
    model: Any,
    data: Any = None,
    steps: int | None = None,
    *,
    batch_size: int = 32,
    call: Caller | None = None,
) -> Any:
    """A new model that computes the same in inference, without batch normalization.

    Each batch normalization goes into the linear layer before it, else into the one behind it,
    else into a batch normalization before it. Keras: Dense, Conv1D to 3D with groups, depthwise,
    separable and transposed convolutions. PyTorch: Linear, Conv1d to 3d and ConvTranspose1d to 3d,
    with groups. Weights are computed in float64 and cast once. Layers that do nothing in inference
    (dropout) may lie between.

    Where that would not be exact the layer stays: a shared layer, an activation in between, a
    second consumer, a normalization that adds an offset before a convolution that pads.
    `result.folding` lists what was folded, every refusal with its reason, and how far the outputs
    are apart on the data.

    The result is for inference: do not train it. The given model is not changed. Keras: layers in
    which nothing changes are the same objects in both, with all that they hold. PyTorch: the result
    is a `torch.fx.GraphModule` in evaluation mode that shares nothing with the given module.

    Args:
        model: a functional or sequential Keras model, where models inside it are folded too; or a
            PyTorch module that `torch.fx` can trace.
        data, steps, batch_size, call: what the outputs are compared on, as for `reestimate`.
            PyTorch needs data where a Linear is to take a normalization in: only that shows that
            both have their channels on the same axis.

    Raises:
        TypeError, ValueError: the model is not such a model, or an argument is not what it must be.

    Reference: Jacob et al. 2018, "Quantization and training of neural networks", section 3.2.
    """
    check_model(model, "fold")
    if is_nnx(model):
        raise TypeError(
            "fold: model must be a Keras model or a PyTorch module; got an nnx module. Nothing "
            "tells which layer's output reaches which: multiply its kernels by hand."
        )
    batches = None if data is None else Batches(model, data, batch_size, steps, "fold", call)
    work = _refitting(model, batches) if is_torch(model) and not is_keras(model) else _keras(model)
    result = work.model()
    difference = None
    if batches is not None:
        before, after = (functools.partial(outputs, one, batches.call) for one in (model, result))
        difference = largest_difference(before, after, batches)
    result.folding = Folding(tuple(work.folded), tuple(work.refused), difference)
    return result


def _keras(model: Any) -> Any:
    from batchnorm.tools.rebuilding import Rebuilding, functional

    if functional(model) is None:
        raise ValueError(
            "fold: model must be functional or sequential with a known input shape, so that its "
            f"graph is known; got {type(model).__name__}."
        )
    return Rebuilding(model)


def _refitting(module: Any, batches: Batches | None) -> Any:
    from batchnorm.tools.refitting import Refitting

    first = None if batches is None or batches.call is not None else next(iter(batches), None)
    return Refitting(module, first)


Outputs = Callable[[Any], list[np.ndarray]]


def largest_difference(before: Outputs, after: Outputs, batches: Iterable[Any]) -> float:
    """The largest difference of what two functions put out, relative to the largest output.

    NaN where one of them is NaN and the other is not.

    Raises:
        ValueError: there is no batch.
    """
    largest = most = 0.0
    read = False
    for batch in batches:
        read = True
        for was, now in zip(before(batch), after(batch), strict=True):
            with np.errstate(invalid="ignore"):
                same = (was == now) | (np.isnan(was) & np.isnan(now))
                apart = np.where(same, 0.0, np.abs(now - was))
            # NaN in one of the two stays: Python's max would pass it by
            largest = float(np.maximum(largest, np.max(apart, initial=0.0)))
            most = max(most, float(np.max(np.abs(was[np.isfinite(was)]), initial=0.0)))
    if not read:
        raise ValueError("fold: data must hold at least one row; got none.")
    return largest / most if most else largest


def outputs(model: Any, call: Caller | None, batch: Any) -> list[np.ndarray]:
    """A model's outputs in inference, in float64."""
    if is_torch(model) and not is_keras(model):
        torch = sys.modules["torch"]
        with torch.no_grad(), put_back(model):
            model.eval()
            leaves, _ = torch.utils._pytree.tree_flatten(run_model(model, batch, call))
        tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
        return [one.detach().double().cpu().numpy() for one in tensors]
    keras = sys.modules["keras"]
    leaves = keras.tree.flatten(run_model(model, batch, call))
    return [np.asarray(keras.ops.convert_to_numpy(one), np.float64) for one in leaves]
