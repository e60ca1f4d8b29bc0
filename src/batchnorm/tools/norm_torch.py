"""PyTorch modules under the names of `Norm`. Imported once torch is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from batchnorm.tools.norm import AUTO, HELD, Array, Frozen, Norm, Stance, said_trained
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


class TorchNorm(Norm):
    """A PyTorch module: BatchNorm1d to 3d, SyncBatchNorm, and their subclasses.

    Args:
        training: whether the model that holds it is in training mode. The modes are those of now:
            a tool changes them while it runs the model.
    """

    framework = "PyTorch"
    cumulative = True
    unbiased = True

    def __init__(self, layer: Any, name: str, training: bool) -> None:
        super().__init__(layer, name)
        self.momentum = None if layer.momentum is None else 1 - layer.momentum
        self.epsilon = layer.eps
        self._model_trains, self._trains = training, layer.training

    def host_statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.running_mean), _flat(self.layer.running_var)

    def put(self, values: dict[str, Array], which: Array | None = None) -> None:
        for name, value in values.items():
            buffer = self._remembering().get(name)
            if buffer is not None:
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

    def set_host_parameters(self, gamma: Array | None, beta: Array | None) -> None:
        with torch.no_grad():
            for name, value in (("weight", gamma), ("bias", beta)):
                if value is not None:
                    parameter = getattr(self.layer, name)
                    new = torch.as_tensor(value).to(parameter)
                    if torch.nn.utils.parametrize.is_parametrized(self.layer, name):
                        setattr(self.layer, name, new)  # through its right inverse
                    else:
                        parameter.copy_(new)

    def memory(self) -> list[Any]:
        return [buffer.detach().clone() for buffer in self.layer.buffers(recurse=False)]

    def set_memory(self, memory: list[Any]) -> None:
        for buffer, value in zip(self.layer.buffers(recurse=False), memory, strict=True):
            buffer.copy_(value)

    def updates(self) -> int | None:
        count = self.layer.num_batches_tracked
        return None if count is None else int(count)

    def set_updates(self, count: int) -> None:
        if self.layer.num_batches_tracked is not None:
            self.layer.num_batches_tracked.fill_(count)

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

    def set_option(self, name: str, value: Any) -> None:
        own = {"epsilon": "eps"}.get(name, name)
        setattr(self.layer, own, _share(value) if name.endswith("momentum") else value)

    def stance(self) -> Stance:
        return HELD if self._held() else AUTO

    def trains(self) -> bool | None:
        return any(self._grads().values())

    def sentences(self) -> list[str]:
        scale, center = self.layer.weight is not None, self.layer.bias is not None
        return [self._case(), said_trained(scale, center, bool(self.trains()))]

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
        if rank < 2:
            raise ValueError(
                f"{self.owner}: the input must have a batch dimension and channels; got rank "
                f"{rank}. One example needs an axis in front, x[None]."
            )
        return (1,)


def _share(kept: float | None) -> float | None:
    """The share of the new value, from that of the old: 0.1 for 0.9."""
    if kept is None:
        return None
    short = float(f"{1 - kept:.12g}")
    return short if 1 - short == kept else 1 - kept


def _flat(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().cpu().numpy().reshape(-1).copy()
