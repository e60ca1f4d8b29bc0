"""Modules of batchnorm.torch under the names of `Norm`. Imported once torch is."""

from __future__ import annotations

import sys
from typing import Any

import torch

from batchnorm._plan import Plan
from batchnorm.tools.norm import Array, Frozen, Norm, Stance
from batchnorm.tools.norm_own import Own
from batchnorm.tools.norm_torch import BASE, TorchNorm


def norm_of(module: Any, name: str, training: bool) -> Norm:
    """The module as what it is: ours, or torch's own."""
    ours = sys.modules.get("batchnorm.torch.modules")
    own = ours is not None and isinstance(module, ours.Modes)
    return (OwnTorchNorm if own else TorchNorm)(module, name, training)


class OwnTorchNorm(Own, TorchNorm):
    """A module of batchnorm.torch."""

    @property
    def backend(self) -> Any:
        return next(self.layer.buffers(), "torch")  # the kernels of its device

    def host_memory(self) -> dict[str, Array]:
        skipped = "skipped_updates"
        return {name: one for name, one in super().host_memory().items() if name != skipped}

    def _remembering(self) -> dict[str, torch.Tensor]:
        layer = self.layer
        return super()._remembering() | {name: getattr(layer, name) for name in layer._further}

    def skipped(self) -> int:
        return int(self.layer.skipped_updates.max()) if self.layer.skipped_updates.numel() else 0

    def live(self, training: bool) -> bool:
        return training and not self._left_behind()

    def options(self) -> dict[str, Any]:
        share = self.layer.renorm_momentum
        return super().options() | {"renorm_momentum": None if share is None else 1 - share}

    def stance(self) -> Stance:
        return self.switches()  # in eval mode inside a model in training mode is none

    def last_plan(self) -> Plan | None:
        kept = [plan for one in self.layer._plans.values() for plan in one.plans.values()]
        return kept[-1] if kept else None

    def frozen(self) -> Frozen | None:
        if self.decides(True)[1]:
            return None
        if self.layer.update_statistics is False or self.layer.statistics == "moving":
            return Frozen("update_statistics=False", "batchnorm.unfreeze(model)")
        return super().frozen()

    def _held(self) -> bool:
        return self.layer.statistics == "moving" and self.layer.update_statistics is not True

    def _hold(self, memo: dict[str, Any], on: bool) -> None:
        """By options, which hold through `train()`, copies, files and `convert`."""
        layer = self.layer
        if on:
            memo.setdefault("statistics", (layer.statistics, layer.update_statistics))
            layer.statistics, layer.update_statistics = "moving", False
        else:
            before = memo.pop("statistics", ("auto", "auto"))
            layer.statistics, layer.update_statistics = before

    def _case(self) -> str:
        given = [
            f"{name}={getattr(self.layer, name)!r}"
            for name in ("statistics", "update_statistics")
            if getattr(self.layer, name) != "auto"
        ]
        because = f", because {', '.join(given)}" if given else ""
        if self.does(True) == self.does(False):
            return f"In train and eval mode alike it {self.does(True)}{because}."
        mode = "train" if self._trains else "eval"
        return f"It is in {mode} mode: it {self.does(self._trains)}{because}."

    def how_to_bear_small_batches(self) -> str:
        return (
            "Use larger batches, synchronized=True over processes, or renorm=True with small ones."
        )

    def lost_by_conversion(self) -> str | None:
        if (modes := self.layer.extra_repr()) == BASE.extra_repr(self.layer):
            return None
        added = modes.removeprefix(BASE.extra_repr(self.layer)).strip(", ")
        return (
            "torch.nn.SyncBatchNorm.convert_sync_batchnorm builds a module of its own class, "
            f"without {added}: use batchnorm.set_synchronized"
        )
