"""A plain call in one go on an NVIDIA GPU.

Importing this module imports no Triton: `device` was asked before a call comes here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from batchnorm.backends.torch.whole import Lies, Ready


class OnGpu(Ready):
    """Moments are kept as the operators return them."""

    counters = (torch.int32, torch.int64)

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.gpu: Any = importlib.import_module("batchnorm.backends.torch.gpu")
        self.numbers = {"epsilon": self.epsilon, "activation": self.activation}

    def lies(self, x: torch.Tensor) -> Lies | None:
        return super().lies(x) if x.numel() else None

    @staticmethod
    def beside(vector: torch.Tensor, x: torch.Tensor) -> bool:
        return vector.get_device() == x.get_device()

    @staticmethod
    def order(*sizes: int) -> Any:
        return sizes

    def at(self, kept: Any) -> Any:
        return kept

    def at_moving(self, mean: Any, variance: Any) -> Any:
        return mean, None, variance, None

    def vectors(self, kept: Any) -> list[torch.Tensor]:
        return kept

    def _given(self, gamma: Any, beta: Any, moments: Any, **more: Any) -> dict[str, Any]:
        named = dict(zip(self.gpu.MOMENTS, moments, strict=True))
        return {**self.numbers, **named, "scale": gamma, "offset": beta, **more}

    def infer(
        self, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
    ) -> torch.Tensor:
        y = torch.empty_like(x)
        given = self._given(gamma, beta, (mean, None, variance, None), y=y)
        self.gpu.Launch(x, lies[1]).run("standardize", given)
        return y

    def forward(self, lies: Lies, x: Any, gamma: Any, beta: Any) -> tuple[torch.Tensor, ...]:
        y, make = torch.empty_like(x), x.new_empty
        rows, kind = self.rows, self.statistics
        kept = [make(rows, dtype=kind) for _ in range(3)]
        kept.append(make((rows[0], 1), dtype=kind))
        self.gpu.Launch(x, lies[1]).run("forward", self._given(gamma, beta, kept, y=y))
        return y, *kept

    def backward(
        self, lies: Lies, x: Any, dy: Any, gamma: Any, beta: Any, at: Any, frozen: bool
    ) -> Any:
        dx = torch.empty_like(x)
        sum_dy, sum_dy_xh = (
            x.new_empty(self.length, dtype=self.statistics)
            if one is None
            else torch.empty_like(one)
            for one in (beta, gamma)
        )
        made = {"dx": dx, "sum_dy": sum_dy, "sum_dy_xh": sum_dy_xh, "frozen": frozen}
        self.gpu.Launch(x, lies[1], (dy,)).run("backward", self._given(gamma, beta, at, **made))
        return dx, None if gamma is None else sum_dy_xh, None if beta is None else sum_dy

    def remember(
        self, kept: Any, state: Mapping[str, Any], new: Mapping[str, Any], number: Any
    ) -> None:
        old = state if number is not None else {**state, "num_updates": None}
        self.gpu.remember_into(old, new, kept, *self.how)
