"""Synchronization as a switch of layers that are there: nothing is replaced."""

from __future__ import annotations

import sys
from typing import Any

from batchnorm._options import Options
from batchnorm.tools.norms import is_keras, is_torch
from batchnorm.tools.retracing import trace_anew


def set_synchronized(model: Any, synchronized: Any) -> list[str]:
    """The names of the batch-norm layers that take their statistics over all replicas from now on.

    Every layer of `batchnorm.keras` and module of `batchnorm.torch` in the model, at any depth,
    keeps its variables, options and optimizer slots, and only its attribute `synchronized` changes.
    Keras' `fit` traces its step anew, that of models around this one too; a function that you
    compiled yourself must be compiled again.

    Args:
        model: a Keras model, or a layer that holds others; or a PyTorch module.
        synchronized: True, False, or what else `batchnorm.batch_norm` takes.

    Raises:
        TypeError: model is neither, or synchronized is none of these.
        ValueError: the model holds no layer of ours, or, to be synchronized, one of its framework's
            own. No layer has been changed then.
    """
    Options(synchronized=synchronized, owner="set_synchronized")
    if is_keras(model):
        ours, theirs = _keras_layers(model)
        words = ("a batch-norm layer of batchnorm.keras", "batch-norm layers of Keras' own")
        remedy = "Build it with batchnorm.keras.BatchNormalization."
        _check(model.name, ours, theirs, synchronized, words, remedy)
    elif is_torch(model):
        ours, theirs = _torch_modules(model)
        words = ("a module of batchnorm.torch", "batch-norm modules of torch's own")
        remedy = "Call batchnorm.torch.convert(model) first."
        _check(type(model).__name__, ours, theirs, synchronized, words, remedy)
    else:
        raise TypeError(
            "set_synchronized: model must be a Keras model or layer, or a PyTorch module; got "
            f"{model!r}."
        )
    for _, layer in ours:
        layer.synchronized = synchronized
    if is_keras(model):
        trace_anew(layer for _, layer in ours)
    return [name for name, _ in ours]


Named = list[tuple[str, Any]]


def _keras_layers(model: Any) -> tuple[Named, Named]:
    """Our layers and Keras' own, by name."""
    kind = sys.modules["keras"].layers.BatchNormalization
    # Keras (3.15) has no public walk over nested layers.
    found = [(one.name, one) for one in model._flatten_layers() if isinstance(one, kind)]
    return _parted(found, "batchnorm.keras.base", "BatchNormalizationBase")


def _torch_modules(model: Any) -> tuple[Named, Named]:
    """Our modules and torch's own, by name."""
    kind = sys.modules["torch"].nn.modules.batchnorm._BatchNorm
    found = [
        (name or type(one).__name__, one)
        for name, one in model.named_modules()
        if isinstance(one, kind)
    ]
    return _parted(found, "batchnorm.torch.modules", "Modes")


def _parted(found: Named, module: str, kind: str) -> tuple[Named, Named]:
    """Those of a class of ours and the others; nothing is of a class that was not imported."""
    ours = getattr(sys.modules.get(module), kind, ())
    return (
        [(name, one) for name, one in found if isinstance(one, ours)],
        [(name, one) for name, one in found if not isinstance(one, ours)],
    )


def _check(
    name: str,
    ours: Named,
    theirs: Named,
    synchronized: Any,
    words: tuple[str, str],
    remedy: str,
) -> None:
    """Refuses a model without a layer of ours, and to synchronize a part of its layers only."""
    if not ours:
        raise ValueError(
            f"set_synchronized: model must hold {words[0]}; got {name!r} with {len(theirs)} of "
            f"{words[1].rsplit(maxsplit=2)[-2]} own. {remedy}"
        )
    if theirs and synchronized:
        raise ValueError(
            f"set_synchronized: model must hold no {words[1]}; got {[one for one, _ in theirs]}. "
            f"{remedy}"
        )
