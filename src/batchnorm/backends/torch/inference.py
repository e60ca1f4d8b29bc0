"""Inference in PyTorch's own operations: one where a program leaves, few where it stays."""

from __future__ import annotations

from typing import Any

import torch

from batchnorm.backends.composite import SMALLEST, factors_of
from batchnorm.backends.torch import operations
from batchnorm.backends.torch.watchers import exporting


def infer(
    x: torch.Tensor,
    view: Any,
    mean: torch.Tensor,
    variance: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    """What `composite.affine_map` says.

    In an export it is `aten.batch_norm` where that says it, so that quantizers, ONNX and TensorRT
    find a batch normalization to fold. On the CPU it computes `x * factor + (offset - mean *
    factor)`, which is wrong far from zero, so nothing else takes it.
    """
    if (
        view.axes == (1,)
        and exporting()
        and x.dtype is mean.dtype  # ONNX has no types beside each other before opset 15
        and epsilon >= SMALLEST
    ):
        vectors = (
            None if one is None else operations.reshape(one, (view.shape[1],))
            for one in (mean, variance, scale, offset)
        )
        return torch.nn.functional.batch_norm(x, *vectors, False, 0.0, epsilon)
    factor = view.spread(operations, factors_of(operations, variance, scale, epsilon).slope)
    # PyTorch promotes 16 bits by itself; what reads an export may not
    wide = operations.cast(x, operations.dtype(mean)) if exporting() else x
    y = wide - view.spread(operations, mean)
    if offset is None:
        return operations.cast(y * factor, operations.dtype(x))
    y = torch.addcmul(view.spread(operations, offset), y, factor)
    return operations.cast(y, operations.dtype(x))
