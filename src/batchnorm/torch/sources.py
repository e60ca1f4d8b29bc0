"""What `convert` knows: torch's modules, and layers of packages that it does not import."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from batchnorm.torch import modules
from batchnorm.torch.presets import Ramp

OURS: dict[Any, Any] = {
    getattr(torch.nn, name): getattr(modules, name)
    for name in (
        *(f"{lazy}BatchNorm{rank}d" for lazy in ("", "Lazy") for rank in (1, 2, 3)),
        "SyncBatchNorm",
    )
}
# Layers with an activation, by name.
WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d": modules.BatchNorm2d,
    "timm.layers.norm_act.SyncBatchNormAct": modules.SyncBatchNorm,
}
VECTORS = ("weight", "bias", "running_mean", "running_var")


class Source(NamedTuple):
    """What a layer becomes.

    modes: the keywords that it brings. attributes: what torch's module has and it may not have.
    after: its children that run behind our kernel. frozen: weight and bias are buffers.
    """

    ours: Any
    modes: dict[str, Any]
    attributes: dict[str, Any] = {}  # noqa: RUF012  # never written
    after: tuple[str, ...] = ()
    frozen: bool = False


def source_of(module: Any, kind: type) -> Source | str:
    """What a layer of this class becomes, or why it cannot be converted."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    if kind in OURS or path in WITH_ACTIVATION:
        ours = OURS.get(kind) or WITH_ACTIVATION[path]
        modes, after = _activation(module)
        if ours is modules.SyncBatchNorm:
            modes["synchronized"] = True if module.process_group is None else module.process_group
        return Source(ours, modes, after=after)
    if is_frozen(module):
        return _frozen(module)
    if is_renorm(module):
        return _renorm(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "its code is compiled already; convert before torch.jit.script"
    return f"{kind.__name__} is a class of its own, and may compute something else"


def is_frozen(module: torch.nn.Module) -> bool:
    """Whether it is a frozen layer, by its tensors: every package has a class of its own."""
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    return not list(module.parameters(recurse=False)) and buffers == set(VECTORS)


def is_renorm(module: torch.nn.Module) -> bool:
    """Whether it is torchrl's BatchRenorm1d, or a copy of it."""
    own = ("max_r", "max_d", "warmup_steps", "smooth", "num_batches_tracked", *VECTORS)
    return all(hasattr(module, name) for name in own)


def _frozen(module: Any) -> Source | str:
    if not hasattr(module, "eps"):
        return "it has no attribute eps"
    modes, after = _activation(module)
    modes |= {"statistics": "moving", "update_statistics": False}
    attributes = {
        "num_features": len(module.running_mean),
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
    }
    return Source(modules.BatchNorm2d, modes, attributes, after, frozen=True)


def _renorm(module: Any) -> Source | str:
    if module.smooth:
        return "smooth=True blends r and d, which no clipping does"
    when = (module.warmup_steps, module.warmup_steps)
    clipping = {
        "rmax": Ramp(1.0, module.max_r, *when),
        "rmin": Ramp(1.0, module.max_r, *when, inverse=True),
        "dmax": Ramp(0.0, module.max_d, *when),
    }
    modes = {"renorm": True, "renorm_momentum": None, "renorm_clipping": clipping}
    return Source(modules.BatchNorm1d, modes, {"affine": True, "track_running_stats": True})


def _activation(module: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What our kernel runs of timm's children `drop` and `act`, and which of them run behind it."""
    children = [
        name
        for name in ("drop", "act")
        if type(module._modules.get(name)) not in (torch.nn.Identity, type(None))
    ]
    if children == ["act"] and type(module.act) is torch.nn.ReLU:
        hooked = module.act._forward_hooks or module.act._forward_pre_hooks
        if not hooked:
            return {"activation": "relu"}, ()
    return {}, tuple(children)
