"""Layers that stop learning, in ways that hold: `freeze`, `unfreeze`, `frozen`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find
from batchnorm.tools.retracing import trace_anew

WHAT = ("statistics", "parameters", "both")


def freeze(model: Any, what: str = "both", pattern: str | None = None) -> list[str]:
    """Stops batch-normalization layers from changing; returns the names of those it froze.

    What:
        statistics: training normalizes with the moving statistics, as inference does, and leaves
            them alone. Gamma and beta go on learning.
        parameters: gamma and beta are not trained. The statistics go on as they were.
        both: both.

    How it lasts: on our Keras layers these are options of the layer (`statistics`,
    `update_statistics`, `train_parameters`): they hold through `trainable = True`, `compile`,
    cloning, saving and loading. On Keras' own layer it is `trainable=False`, which freezes both or
    neither. A PyTorch module keeps its class's name with "Frozen" before it, ignores `train()`, and
    is copied and pickled so; a `state_dict` holds numbers only, so freeze again after loading one.
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` builds modules that are not frozen: convert
    first, then freeze.

    Keras models that were compiled, those around `model` too, make their train functions anew.
    Where `what` includes parameters, call `compile` again, as Keras asks after every change of what
    is trainable. A function that you compiled yourself must be compiled again.

    Args:
        pattern: only layers whose names match, as file names do ("block1_*").

    Raises:
        TypeError, ValueError: an argument is not what it must be, or Keras' own layer is asked for
            only one of the two. Nothing is changed then.
    """
    norms = _checked(model, what, pattern, "freeze")
    _set(model, norms, what, True)
    return [norm.name for norm in norms]


def unfreeze(model: Any, what: str = "both", pattern: str | None = None) -> list[str]:
    """Undoes `freeze`: returns the names of the layers, which learn again as by default.

    Raises:
        TypeError, ValueError: as `freeze`.
    """
    norms = _checked(model, what, pattern, "unfreeze")
    _set(model, norms, what, False)
    return [norm.name for norm in norms]


@contextlib.contextmanager
def frozen(model: Any, what: str = "both", pattern: str | None = None) -> Iterator[list[str]]:
    """`with frozen(model):` frozen inside, afterwards as it was before, frozen layers included.

    Raises:
        TypeError, ValueError: as `freeze`.
    """
    norms = _checked(model, what, pattern, "frozen")
    modes = [_mode(norm) for norm in norms]
    try:
        _set(model, norms, what, True)
        yield [norm.name for norm in norms]
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            _set_mode(norm, mode)
        _trace_anew(norms)


def _checked(model: Any, what: str, pattern: str | None, owner: str) -> list[Norm]:
    if what not in WHAT:
        choices = ", ".join(map(repr, WHAT))
        raise ValueError(f"{owner}: what must be one of {choices}; got {what!r}.")
    norms = find(model, owner, pattern)
    if what != "both" and (own := [norm for norm in norms if norm.kind == "keras"]):
        raise ValueError(
            f"{owner}: what must be 'both' for Keras' own layer, whose `trainable` is one switch; "
            f"got {what!r} for {own[0].name!r}. Use batchnorm.keras.BatchNormalization to choose."
        )
    return norms


def _set(model: Any, norms: list[Norm], what: str, froze: bool) -> None:
    for norm in norms:
        layer = norm.layer
        if norm.kind == "keras":
            layer.trainable = not froze
            continue
        if what in ("statistics", "both"):
            if norm.kind == "torch":
                _hold(layer, froze, model.training)
            else:
                layer.statistics = "moving" if froze else "auto"
                layer.update_statistics = False if froze else "auto"
        if what in ("parameters", "both"):
            if norm.kind == "torch":
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad_(not froze)
            else:
                layer.train_parameters = not froze
    _trace_anew(norms)


def _trace_anew(norms: list[Norm]) -> None:
    trace_anew(norm.layer for norm in norms if norm.kind != "torch")


def _mode(norm: Norm) -> tuple[Any, ...]:
    layer = norm.layer
    if norm.kind == "keras":
        return (layer.trainable,)
    if norm.kind == "batchnorm":
        return layer.statistics, layer.update_statistics, layer.train_parameters
    grads = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
    return getattr(layer, "statistics_frozen", False), layer.training, grads


def _set_mode(norm: Norm, mode: tuple[Any, ...]) -> None:
    layer = norm.layer
    if norm.kind == "keras":
        (layer.trainable,) = mode
    elif norm.kind == "batchnorm":
        layer.statistics, layer.update_statistics, layer.train_parameters = mode
    else:
        was_frozen, training, grads = mode
        _hold(layer, was_frozen, training)
        for parameter, grad in zip(layer.parameters(recurse=False), grads, strict=True):
            parameter.requires_grad_(grad)


def _hold(module: Any, froze: bool, training: bool) -> None:
    """A module in eval mode for good: its class ignores `train()`, where a flag would be lost."""
    is_frozen = getattr(module, "statistics_frozen", False)
    if froze and not is_frozen:
        kind: Any = type(module)
        module.__class__ = frozen_class(kind)
    elif not froze and is_frozen:
        module.__class__ = type(module).thawed
    module.train(training)


@functools.cache
def frozen_class(kind: Any) -> Any:
    """The class of modules of this kind whose statistics are frozen."""

    def train(self: Any, mode: bool = True) -> Any:
        """Stays in eval mode: `batchnorm.unfreeze` ends that."""
        return kind.train(self, False)

    def reduce(self: Any, protocol: Any) -> Any:
        return _empty, (kind,), self.__dict__

    body = {
        "__doc__": f"{kind.__name__} that normalizes with its moving statistics, always.",
        "__module__": kind.__module__,
        "__reduce_ex__": reduce,
        "statistics_frozen": True,
        "thawed": kind,
        "train": train,
    }
    return type(f"Frozen{kind.__name__}", (kind,), body)


def _empty(kind: Any) -> Any:
    """A frozen module without content, which copying and unpickling fill."""
    made = frozen_class(kind)
    return made.__new__(made)
