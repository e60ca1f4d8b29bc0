"""PyTorch modules under the names of `Norm`. Imported once torch is."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from batchnorm._plan import Plan, decide
from batchnorm.backends import why_not
from batchnorm.tools.norm import Array, Frozen, Norm, said_trained
from batchnorm.tools.staying import Staying, stay

BASE = torch.nn.modules.batchnorm._BatchNorm
# What these do, `convert_sync_batchnorm` keeps; of any other class it keeps the numbers only.
PLAIN = (
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
)
_MEMO = "frozen_by_batchnorm"  # in a frozen module's dictionary: what it was before


def modules(model: Any) -> dict[str, Any]:
    """The modules with moving statistics, by name."""
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if isinstance(module, BASE) and module.running_mean is not None
    }


def is_built(module: Any) -> bool:
    return not isinstance(module.running_mean, torch.nn.parameter.UninitializedBuffer)


def norm_of(module: Any, name: str, training: bool) -> Norm:
    """The module as what it is: ours, or torch's own."""
    ours = sys.modules.get("batchnorm.torch.modules")
    own = ours is not None and isinstance(module, ours.Modes)
    return (OwnTorchNorm if own else TorchNorm)(module, name, training)


class TorchNorm(Norm):
    """A PyTorch module: BatchNorm1d to 3d, SyncBatchNorm, and their subclasses.

    Args:
        training: whether the model that holds it is in training mode. The modes are those of now:
            a tool changes them while it runs the model.
    """

    unbiased = True

    def __init__(self, layer: Any, name: str, training: bool) -> None:
        super().__init__(layer, name)
        self.momentum = None if layer.momentum is None else 1 - layer.momentum
        self.epsilon = layer.eps
        self._model_trains, self._trains = training, layer.training

    def host_statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.running_mean), _flat(self.layer.running_var)

    def set_host_statistics(self, mean: Array, variance: Array, which: Array | None = None) -> None:
        for name, value in self.agreeing(mean, variance).items():
            buffer = self._remembering().get(name)
            if buffer is not None:  # what follows from the others is not stored
                kept = value if which is None else np.where(which, value, _flat(buffer))
                buffer.copy_(torch.as_tensor(kept).to(buffer))

    def _remembering(self) -> dict[str, torch.Tensor]:
        """The buffers of each channel, in the core's names."""
        layer = self.layer
        return {"moving_mean": layer.running_mean, "moving_variance": layer.running_var}

    def host_memory(self) -> dict[str, Array]:
        return {name: _flat(buffer) for name, buffer in self._remembering().items()}

    def device_statistics(self, dtype: str) -> tuple[Any, Any]:
        pair = (self.layer.running_mean, self.layer.running_var)
        return tuple(one.to(getattr(torch, dtype))[None] for one in pair)

    def set_device_statistics(self, mean: Any, variance: Any) -> None:
        self.layer.running_mean.copy_(mean[0])
        self.layer.running_var.copy_(variance[0])

    def host_parameters(self) -> tuple[Array | None, Array | None]:
        weight, bias = self.layer.weight, self.layer.bias
        return None if weight is None else _flat(weight), None if bias is None else _flat(bias)

    def memory(self) -> list[Any]:
        return [buffer.detach().clone() for buffer in self.layer.buffers(recurse=False)]

    def set_memory(self, memory: list[Any]) -> None:
        for buffer, value in zip(self.layer.buffers(recurse=False), memory, strict=True):
            buffer.copy_(value)

    def updates(self) -> int | None:
        count = self.layer.num_batches_tracked
        return None if count is None else int(count)

    def decides(self, training: bool) -> tuple[bool, bool]:
        batch = training and not self._held() and not self._left_behind()
        return batch, batch and self.momentum != 1

    def _held(self) -> bool:
        return "statistics" in self._memo()

    def _left_behind(self) -> bool:
        """In eval mode inside a model in training mode: training is not for it."""
        return self._model_trains and not self._trains

    def frozen(self) -> Frozen | None:
        if self._held():
            return Frozen("frozen by batchnorm.freeze", "batchnorm.unfreeze(model)")
        if self._left_behind():
            return Frozen("in eval mode inside a model in training mode", "model.train()")
        if self.momentum == 1:
            return Frozen("momentum=0.0 (of the batch)", "set momentum=0.1 on the module")
        return None

    def in_training(self, call: Any, args: Any, kwargs: Any) -> Any:
        self.layer.training = True
        try:
            return call(*args, **kwargs)
        finally:
            self.layer.training = False

    def path(self) -> tuple[str, str | None]:
        return "torch's own kernel", (
            "torch's own modules do not take them; those of batchnorm.torch do."
        )

    def freeze(self, what: str, on: bool) -> None:
        memo = self._memo()
        if what != "parameters":
            self._hold(memo, on)
        if what != "statistics":
            if on:
                memo.setdefault("parameters", self._grads())
                self._set_grads(dict.fromkeys(self._grads(), False))
            else:
                self._set_grads(memo.pop("parameters", dict.fromkeys(self._grads(), True)))
        self._keep(memo)

    def _hold(self, memo: dict[str, Any], on: bool) -> None:
        """In eval mode for good: `train` of the instance and a hook before `forward` see to it.

        The class stays what it is, so that whatever looks for it, or puts another one in its place
        (parametrizations), finds it. The hook serves where nobody asks the instance for `train`:
        TorchScript compiles it.
        """
        module = self.layer
        if on and "statistics" not in memo:
            memo["statistics"] = self._left_behind()
            module.train(False)
            vars(module)["train"] = Staying(module)
            module.register_forward_pre_hook(stay)
        elif not on:
            if "statistics" in memo:
                del vars(module)["train"]
                for key in [k for k, hook in module._forward_pre_hooks.items() if hook is stay]:
                    del module._forward_pre_hooks[key]
            left_behind = memo.pop("statistics", False)
            module.train(self._model_trains and not left_behind)

    def _memo(self) -> dict[str, Any]:
        """What the module was before it was frozen: by "statistics" and "parameters"."""
        return dict(vars(self.layer).get(_MEMO, {}))

    def _keep(self, memo: dict[str, Any]) -> None:
        if memo:
            vars(self.layer)[_MEMO] = memo
        else:
            vars(self.layer).pop(_MEMO, None)

    def _parameters(self) -> dict[str, list[Any]]:
        """Weight and bias, or what parametrizations make them from."""
        found = {}
        for name in ("weight", "bias"):
            if torch.nn.utils.parametrize.is_parametrized(self.layer, name):
                found[name] = list(self.layer.parametrizations[name].parameters())
            elif getattr(self.layer, name) is not None:
                found[name] = [getattr(self.layer, name)]
        return found

    def _grads(self) -> dict[str, bool]:
        return {
            name: any(one.requires_grad for one in parts)
            for name, parts in self._parameters().items()
        }

    def _set_grads(self, grads: dict[str, bool]) -> None:
        for name, parts in self._parameters().items():
            for one in parts:
                one.requires_grad_(grads.get(name, True))

    def mode(self) -> Any:
        return self._memo(), self.layer.training, self._grads()

    def set_mode(self, mode: Any) -> None:
        memo, training, grads = mode
        self._hold(self._memo(), "statistics" in memo)
        self.layer.train(training)
        self._set_grads(grads)
        self._keep(memo)

    def sentences(self) -> list[str]:
        scale, center = self.layer.weight is not None, self.layer.bias is not None
        trains = any(self._grads().values())
        return [self._case(), said_trained(scale, center, trains)]

    def _case(self) -> str:
        moving, alone = "normalizes with the moving statistics", "leaves them alone"
        if self._held():
            return f"In train and eval mode alike it {moving} and {alone}: it is frozen."
        if not self._trains:
            return (
                f"It is in eval mode: it {moving} and {alone}, until train() is called on it or on "
                "a module that holds it."
            )
        batch = "It is in train mode: it normalizes with the batch's own statistics"
        if self.momentum == 1:
            return f"{batch} and leaves the moving ones alone, because momentum=0.0."
        return f"{batch} and updates the moving ones."

    def said_momentum(self, momentum: float | None) -> str:
        return "None" if momentum is None else f"{1 - momentum:.3g}"

    def quicker(self, momentum: float) -> str:
        return f"raise the momentum to {self.said_momentum(momentum)}"

    def how_to_update(self) -> str:
        return "Call model.train() before training, so that forward passes update them"

    def how_to_bear_small_batches(self) -> str:
        return (
            "Use larger batches, torch.nn.SyncBatchNorm over replicas, or batch renormalization "
            "(batchnorm.torch.convert(model, renorm=True)) with small ones."
        )

    def lost_by_conversion(self) -> str | None:
        what = "torch.nn.SyncBatchNorm.convert_sync_batchnorm builds a module"
        if self._held():
            return f"{what} that is not frozen: convert first, then freeze"
        if type(self.layer) not in PLAIN:
            return f"{what} of its own class, without what {type(self.layer).__name__} adds"
        return None

    def axes(self, rank: int) -> tuple[int, ...]:
        return (1,)


class OwnTorchNorm(TorchNorm):
    """A module of batchnorm.torch."""

    def host_memory(self) -> dict[str, Array]:
        skipped = "skipped_updates"
        return {name: one for name, one in super().host_memory().items() if name != skipped}

    def _remembering(self) -> dict[str, torch.Tensor]:
        layer = self.layer
        return super()._remembering() | {name: getattr(layer, name) for name in layer._further}

    def skipped(self) -> int:
        return int(self.layer.skipped_updates.max()) if self.layer.skipped_updates.numel() else 0

    def decides(self, training: bool) -> tuple[bool, bool]:
        live = training and not self._left_behind()
        batch, update = decide(self.layer.statistics, self.layer.update_statistics, live)
        return batch, update and self.momentum != 1

    def group_size(self) -> int | None:
        size: int | None = self.layer.virtual_batch_size
        return size

    def renorm(self) -> bool:
        return bool(self.layer.renorm)

    def debias(self) -> bool | str:
        kind = self.layer.zero_debias
        return "mean" if kind is True else kind

    def own_training(self) -> bool:
        layer = self.layer
        return self.renorm() or layer.adjustment is not None or self.group_size() is not None

    def last_plan(self) -> Plan | None:
        kept = [plan for one in self.layer._plans.values() for plan in one.plans.values()]
        return kept[-1] if kept else None

    def frozen(self) -> Frozen | None:
        if self.decides(True)[1]:
            return None
        if self.layer.update_statistics is False or self.layer.statistics == "moving":
            return Frozen("update_statistics=False", "batchnorm.unfreeze(model)")
        return super().frozen()

    def path(self) -> tuple[str, str | None]:
        where = next(self.layer.buffers(), "torch")  # the kernels of its device
        reason = "fused is False." if self.layer.fused is False else why_not(where)
        return "composite operations" if reason else "fused kernels", reason

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


def _flat(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().cpu().numpy().reshape(-1).copy()
