"""Layers that stop learning, in ways that hold: `freeze`, `unfreeze`, `frozen`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find, is_keras
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
    neither. A PyTorch module keeps its class; it ignores `train()`, its copies, pickles and
    scripted twins do so too, and parametrizations come and go. A `state_dict` holds numbers only,
    so freeze again after loading one into a new model. What builds modules anew, such as
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, builds them not frozen: convert first.

    Keras models that were compiled, those around `model` too, go on with the next `fit`: steps are
    traced anew, and where parameters were frozen the optimizer is another object, with the same
    configuration, counters and slots. A function that you compiled yourself must be compiled again.

    Args:
        pattern: only layers whose names match, as file names do ("block1_*").

    Raises:
        TypeError, ValueError: an argument is not what it must be, or Keras' own layer is asked for
            only one of the two. Nothing is changed then.
    """
    norms = _checked(model, what, pattern, "freeze")
    _set(norms, what, True)
    return [norm.name for norm in norms]


def unfreeze(model: Any, what: str = "both", pattern: str | None = None) -> list[str]:
    """Undoes `freeze`: returns the names of the layers, which learn again as by default.

    Raises:
        TypeError, ValueError: as `freeze`.
    """
    norms = _checked(model, what, pattern, "unfreeze")
    _set(norms, what, False)
    return [norm.name for norm in norms]


@contextlib.contextmanager
def frozen(model: Any, what: str = "both", pattern: str | None = None) -> Iterator[list[str]]:
    """`with frozen(model):` frozen inside, afterwards as it was before, frozen layers included.

    Raises:
        TypeError, ValueError: as `freeze`.
    """
    norms = _checked(model, what, pattern, "frozen")
    modes = [norm.mode() for norm in norms]
    try:
        _set(norms, what, True)
        yield [norm.name for norm in norms]
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.set_mode(mode)
        _notice(norms)


def _checked(model: Any, what: str, pattern: str | None, owner: str) -> list[Norm]:
    if what not in WHAT:
        choices = ", ".join(map(repr, WHAT))
        raise ValueError(f"{owner}: what must be one of {choices}; got {what!r}.")
    norms = find(model, owner, pattern)
    for norm in norms:
        if reason := norm.why_not_freeze(what):
            raise ValueError(f"{owner}: {reason}")
    return norms


def _set(norms: list[Norm], what: str, on: bool) -> None:
    for norm in norms:
        norm.freeze(what, on)
    _notice(norms)


def _notice(norms: list[Norm]) -> None:
    """Compiled Keras models, wherever they are, take notice."""
    trace_anew(norm.layer for norm in norms if is_keras(norm.layer))
