"""Modules of a model that become ours, or torch's again, in place: `convert` and `revert`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils import parametrize

from batchnorm.torch import modules
from batchnorm.torch.modules import Modes
from batchnorm.torch.options import MODES, options_of
from batchnorm.torch.presets import preset as preset_of

OURS: dict[Any, Any] = {
    getattr(torch.nn, name): getattr(modules, name)
    for name in (
        *(f"{lazy}BatchNorm{rank}d" for lazy in ("", "Lazy") for rank in (1, 2, 3)),
        "SyncBatchNorm",
    )
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
# Layers with an activation, by name: the packages that define them are not imported.
WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d": modules.BatchNorm2d,
    "timm.layers.norm_act.SyncBatchNormAct": modules.SyncBatchNorm,
}
VECTORS = ("weight", "bias", "running_mean", "running_var")


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
    """What a module was before `convert`: its class, and what a frozen layer has been given."""

    kind: Any
    added: tuple[str, ...] | None = None  # None: it was not frozen


def convert(model: torch.nn.Module, preset: str | None = None, **options: Any) -> Conversion:
    """Makes the batch normalization in a model ours, in place, with these options.

    Modules stay the objects that they are, and so do their parameters and buffers: optimizers,
    hooks, names, `training` flags, devices, types, sharing and parametrizations go on.

    What is converted: `torch.nn.BatchNorm1d` to `3d`, their lazy forms, `SyncBatchNorm` (which
    stays synchronized), timm's `BatchNormAct2d` with its activation, and frozen layers of
    torchvision, timm and detectron2: any module whose tensors are the buffers weight, bias,
    running_mean and running_var. Those stay frozen (`statistics="moving"`), and
    `batchnorm.unfreeze` can thaw them.
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
        reason = _reason_against(module, given)
        if reason is None:
            _convert(module, given)
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
        elif module.statistics == "moving" and (before is None or before.added is None):
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
        if base or scripted or _is_frozen(module):
            yield name or type(module).__name__, module


def _is_frozen(module: torch.nn.Module) -> bool:
    """Whether it is a frozen layer, by its tensors: the packages have a class of their own each."""
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    parameters = list(module.parameters(recurse=False))
    return not parameters and buffers == set(VECTORS)


def _reason_against(module: torch.nn.Module, given: dict[str, Any]) -> str | None:
    """Why a module is left as it is; None where it can be converted."""
    if isinstance(module, torch.jit.ScriptModule):
        return "its code is compiled already; convert before torch.jit.script"
    kind = parametrize.type_before_parametrizations(module)
    known = isinstance(module, Modes) or kind in OURS or _path(kind) in WITH_ACTIVATION
    if _is_frozen(module) and not known:
        return None if hasattr(module, "eps") else "it has no attribute eps"
    if not known:
        return f"{kind.__name__} is a class of its own, and may compute something else"
    if module.running_mean is None:
        for name in ("renorm", "zero_debias"):
            if given.get(name):
                return f"it has no running statistics, which {name} needs"
    try:
        options_of({**MODES, **vars(module), **given}, kind.__name__)
    except ValueError as error:  # an option of its own, which torch does not check
        return str(error)
    return None


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _convert(module: Any, given: dict[str, Any]) -> None:
    if isinstance(module, Modes):
        for name, value in given.items():
            setattr(module, name, value)
        return
    kind = parametrize.type_before_parametrizations(module)
    added = None
    modes = dict(MODES)
    if _is_frozen(module):
        modes |= {"statistics": "moving", "update_statistics": False}
        added = _thaw(module)
        ours = modules.BatchNorm2d
    else:
        ours = OURS.get(kind) or WITH_ACTIVATION[_path(kind)]
    if ours is modules.SyncBatchNorm:
        group = module.__dict__.pop("process_group")
        modes["synchronized"] = True if group is None else group
    for name in ("eps", "momentum"):
        setattr(module, name, given.get(name, getattr(module, name)))
    modes |= {name: value for name, value in given.items() if name in MODES}
    if "act" in module._modules and "activation" not in given:
        runs, after = _activation(module)
        modes["activation"] = runs
        module.__dict__["_after"] = after
    module.__dict__["_before"] = Before(kind, added)
    _become(module, ours)
    module.adopt(modes)


def _activation(module: Any) -> tuple[str | None, tuple[str, ...]]:
    """What our kernel runs of timm's children `drop` and `act`, and which of them run behind it."""
    children = [
        name
        for name in ("drop", "act")
        if type(module._modules.get(name)) not in (torch.nn.Identity, type(None))
    ]
    if children == ["act"] and type(module.act) is torch.nn.ReLU:
        hooked = module.act._forward_hooks or module.act._forward_pre_hooks
        if not hooked:
            return "relu", ()
    return None, tuple(children)


def _thaw(module: Any) -> tuple[str, ...]:
    """A frozen layer's tensors as torch's own module has them; gamma and beta are not trained.

    Returns the attributes that it did not have.
    """
    for name in ("weight", "bias"):
        tensor = module._buffers.pop(name)
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    device = module.running_mean.device
    module.register_buffer("num_batches_tracked", torch.tensor(0, device=device))
    attributes = {
        "num_features": len(module.running_mean),
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
    }
    added = {name: value for name, value in attributes.items() if name not in module.__dict__}
    module.__dict__.update(added)
    return tuple(added)


def _revert(module: Any, before: Before) -> None:
    group = module.__dict__.get("synchronized")
    for name in module._further:
        delattr(module, name)
    ours = ("_options", "_plans", "_previous", "_further", "_before", "_after", *MODES)
    for name in ours:
        module.__dict__.pop(name, None)
    _become(module, before.kind)
    if isinstance(module, torch.nn.SyncBatchNorm):
        resolve = torch.distributed.distributed_c10d._resolve_process_group
        module.process_group = resolve(group) if isinstance(group, str) else None
    if before.added is not None:
        del module.num_batches_tracked
        buffers = {name: getattr(module, name).detach() for name in VECTORS}
        for name in VECTORS:
            delattr(module, name)
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)
        for name in before.added:
            del module.__dict__[name]


def _become(module: Any, kind: Any) -> None:
    """Gives a module another class, below its parametrizations if it has some."""
    now = type(module)
    if parametrize.is_parametrized(module):
        skipped = ("__dict__", "__weakref__", "__doc__")
        body = {name: value for name, value in vars(now).items() if name not in skipped}
        kind = type(now.__name__, (kind,), body)
    module.__class__ = kind
