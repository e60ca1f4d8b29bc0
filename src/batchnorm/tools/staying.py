"""What keeps a PyTorch module with frozen statistics in eval mode."""

from __future__ import annotations

from typing import Any, Tuple  # noqa: UP035  # TorchScript reads the annotation of `stay`

import torch


class Staying:
    """`train` of a module whose statistics are frozen: `batchnorm.unfreeze` ends that."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> Any:
        return type(self.module).train(self.module, False)


def stay(self: Any, input: Tuple[torch.Tensor]) -> None:  # noqa: UP006
    """Before each call of a module whose statistics are frozen."""
    if self.training:
        self.training = False
