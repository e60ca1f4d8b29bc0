"""Modules of a model that become ours, or torch's again, in place: `convert` and `revert`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize

from batchnorm.torch.modules import MADE, Modes
from batchnorm.torch.options import MODES, options_of
from batchnorm.torch.presets import preset as preset_of
from batchnorm.torch.sources import OURS, VECTORS, Source, is_frozen, is_renorm, source_of

THEIRS = {ours: theirs for theirs, ours in OURS.items()}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` or `revert` did: names of modules, and why others were left as they are."""

    converted: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} converted, {len(self.skipped)} skipped"]
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.skipped.items())])


@dataclasses.dataclass(frozen=True)
class Before:
    """What a module was before `convert`.

    kind: its class. added: attributes that it had not. frozen: weight and bias were buffers.
    """

    kind: Any
    added: tuple[str, ...] = ()
    frozen: bool = False


def convert(model: torch.nn.Module, preset: str | None = None, **options: Any) -> Conversion:
    """Makes the batch normalization in a model ours, in place, with these options.

    Modules stay the objects that they are, and so do their parameters and buffers: optimizers,
    hooks, names, `training` flags, devices, types, sharing and parametrizations go on.

    What is converted: `torch.nn.BatchNorm1d` to `3d`, their lazy forms, `SyncBatchNorm` (which
    stays synchronized), timm's `BatchNormAct2d` with its activation, and frozen layers of
    torchvision, timm and detectron2: any module whose tensors are the buffers weight, bias,
    running_mean and running_var. Those stay frozen (`statistics="moving"`), and
    `batchnorm.unfreeze` can thaw them. torchrl's `BatchRenorm1d` keeps its clipping and its step.
    Modules that are ours already take the options.

    Args:
        preset: the name of a set of options; see `batchnorm.torch.preset`.
        options: keywords of our modules, and `eps` and `momentum`. The others stay as they are.

    Returns:
        The names of the modules that are ours now, and why others are not.

    Raises:
        TypeError: model is no module, or there is no such option.
        ValueError: an option is not what it must be, or the model holds no batch normalization.
            Nothing has been changed then.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: model must be a PyTorch module; got {type(model).__name__}.")
    given = preset_of(preset, **options) if preset is not None else options
    allowed = ("eps", "momentum", *MODES)
    if unknown := [name for name in given if name not in allowed]:
        raise TypeError(
            f"convert: options must be among {', '.join(allowed)}; got {', '.join(unknown)}."
        )
    options_of({"eps": 1e-5, "momentum": 0.1, **MODES, **given}, "convert")
    converted, skipped = [], {}
    for name, module in _batch_norms(model):
        reason = _convert(module, given)
        if reason is None:
            converted.append(name)
        else:
            skipped[name] = reason
    if not converted and not skipped:
        raise ValueError(
            f"convert: model must hold batch normalization; got {type(model).__name__} without any."
        )
    return Conversion(converted, skipped)


def revert(model: torch.nn.Module) -> Conversion:
    """Makes our modules in a model what they were before `convert`, else torch's own, in place.

    Their modes end; parameters, running statistics and everything else stay. A module stays ours
    where inference would change: one with an activation that torch's module does not have.

    Raises:
        TypeError: model is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"revert: model must be a PyTorch module; got {type(model).__name__}.")
    converted, skipped = [], {}
    for name, module in _batch_norms(model):
        if not isinstance(module, Modes):
            continue
        before = module.__dict__.get("_before")
        kind = parametrize.type_before_parametrizations(module)
        if before is None and kind not in THEIRS:
            skipped[name] = f"{kind.__name__} is a class of its own"
        elif before is None and module.activation is not None:
            skipped[name] = f"torch has no activation={module.activation!r} in {kind.__name__}"
        elif module.statistics == "moving" and not (before and before.frozen):
            skipped[name] = "its statistics are frozen; use batchnorm.unfreeze before"
        else:
            _revert(module, before or Before(THEIRS[kind]))
            converted.append(name)
    return Conversion(converted, skipped)


def _batch_norms(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module that normalizes batches or looks as if it did, by name."""
    for name, module in list(model.named_modules()):
        base = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        scripted = isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in getattr(
            module, "original_name", ""
        )
        if base or scripted or is_frozen(module) or is_renorm(module):
            yield name or type(module).__name__, module


def _convert(module: Any, given: dict[str, Any]) -> str | None:
    """Converts a module; returns why not, and then nothing of it has changed."""
    kind = parametrize.type_before_parametrizations(module)
    if isinstance(module, Modes):
        source: Source | str = Source(kind, {})
    else:
        source = source_of(module, kind)
    if isinstance(source, str):
        return source
    modes = {**source.modes, **given}
    try:
        options_of({**MODES, **source.attributes, **vars(module), **modes}, kind.__name__)
    except ValueError as error:  # an option of its own, which torch does not check
        return str(error)
    if module.running_mean is None:
        for name in ("renorm", "zero_debias"):
            if modes.get(name):
                return f"it has no running statistics, which {name} needs"
    if isinstance(module, Modes):
        for name, value in given.items():
            setattr(module, name, value)
    else:
        _become_ours(module, kind, source, modes)
    return None


def _become_ours(module: Any, kind: Any, source: Source, modes: dict[str, Any]) -> None:
    added = {k: v for k, v in source.attributes.items() if k not in module.__dict__}
    module.__dict__.update(added)
    module.__dict__.update({k: v for k, v in modes.items() if k in ("eps", "momentum")})
    if source.frozen:
        for name in ("weight", "bias"):
            parameter = torch.nn.Parameter(module._buffers.pop(name), requires_grad=False)
            module.register_parameter(name, parameter)
        counter = torch.tensor(0, device=module.running_mean.device)
        module.register_buffer("num_batches_tracked", counter)
    module.__dict__.pop("process_group", None)
    module.__dict__["_after"] = () if modes.get("activation") else source.after
    module.__dict__["_before"] = Before(kind, tuple(added), source.frozen)
    _become(module, source.ours)
    module.adopt({name: modes.get(name, default) for name, default in MODES.items()})


def _revert(module: Any, before: Before) -> None:
    group = module.synchronized
    for name in module._further:
        delattr(module, name)
    for name in (*MADE, "_further", "_before", "_after", *MODES, *before.added):
        module.__dict__.pop(name, None)
    _become(module, before.kind)
    if isinstance(module, torch.nn.SyncBatchNorm):
        resolve = torch.distributed.distributed_c10d._resolve_process_group
        module.process_group = resolve(group) if isinstance(group, str) else None
    if before.frozen:
        del module.num_batches_tracked
        buffers = {name: getattr(module, name).detach() for name in VECTORS}
        for name in VECTORS:
            delattr(module, name)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)


def _become(module: Any, kind: Any) -> None:
    """Gives a module another class, below its parametrizations if it has some."""
    now = type(module)
    if parametrize.is_parametrized(module):
        skipped = ("__dict__", "__weakref__", "__doc__")
        body = {name: value for name, value in vars(now).items() if name not in skipped}
        kind = type(now.__name__, (kind,), body)
    module.__class__ = kind
