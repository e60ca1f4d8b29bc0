"""PyTorch modules under the names of `Norm`. Imported once torch is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from batchnorm.tools.norm import Array, Norm


class TorchNorm(Norm):
    """A PyTorch module: BatchNorm1d to 3d, SyncBatchNorm, and their subclasses."""

    kind = "torch"
    unbiased = True

    def __init__(self, layer: Any, name: str, training: bool) -> None:
        super().__init__(layer, name)
        self.momentum = None if layer.momentum is None else 1 - layer.momentum
        self.epsilon = layer.eps
        self._model_trains = training

    def statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.running_mean), _flat(self.layer.running_var)

    def parameters(self) -> tuple[Array | None, Array | None]:
        weight, bias = self.layer.weight, self.layer.bias
        return None if weight is None else _flat(weight), None if bias is None else _flat(bias)

    def assign(self, mean: Array, variance: Array, which: Array | None = None) -> None:
        for buffer, value in ((self.layer.running_mean, mean), (self.layer.running_var, variance)):
            kept = value if which is None else np.where(which, value, _flat(buffer))
            buffer.copy_(torch.as_tensor(kept).to(buffer))

    def place(self, mean: Any, variance: Any) -> None:
        self.layer.running_mean.copy_(mean[0])
        self.layer.running_var.copy_(variance[0])

    def held(self, dtype: str) -> tuple[Any, Any]:
        pair = (self.layer.running_mean, self.layer.running_var)
        return tuple(one.to(getattr(torch, dtype))[None] for one in pair)

    def state(self) -> list[Any]:
        return [buffer.detach().clone() for buffer in self.layer.buffers(recurse=False)]

    def restore(self, state: list[Any]) -> None:
        for buffer, value in zip(self.layer.buffers(recurse=False), state, strict=True):
            buffer.copy_(value)

    def updates(self) -> int | None:
        count = self.layer.num_batches_tracked
        return None if count is None else int(count)

    def frozen(self) -> str | None:
        if getattr(self.layer, "statistics_frozen", False):
            return "frozen by batchnorm.freeze"
        if self.momentum == 1:
            return "momentum=0.0 (of the batch)"
        if self._model_trains and not self.layer.training:
            return "in eval mode inside a model in training mode"
        return None

    def uses_batch(self) -> bool:
        return self.momentum == 1 or self.frozen() is None

    def path(self) -> tuple[str, str | None]:
        return "torch's own kernel", "They serve batchnorm.batch_norm and batchnorm.keras only."

    def axes(self, rank: int) -> tuple[int, ...]:
        return (1,)


def _flat(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().cpu().numpy().reshape(-1).copy()
