"""Networks and layers of other packages, for tests: timm, torchvision, detectron2."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

_kept: list[Any] = []


def torchvision() -> Any:
    """The package, also where its compiled operators do not fit torch (a CUDA build beside CPU's).

    Networks do not run them, but importing the package describes two of them, which must exist.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision is a requirement of the tests"
    if not _kept:
        (library,) = Path(spec.submodule_search_locations[0]).glob("_C.*")
        try:
            _kept.append(torch.ops.load_library(str(library)))
        except OSError:
            operators = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                operators.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _kept.append(operators)
    return importlib.import_module("torchvision")


def timm() -> Any:
    torchvision()
    return importlib.import_module("timm")


class FrozenBatchNorm2d(torch.nn.Module):
    """A frozen layer as detectron2 has it: four buffers, the count of channels, and epsilon."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((num_features,), value))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return torch.nn.functional.batch_norm(x, *statistics, self.weight, self.bias, eps=self.eps)


class BatchRenorm1d(torch.nn.Module):
    """A layer with the tensors and numbers of torchrl's, after its formula."""

    def __init__(self, num_features: int, warmup_steps: int = 10_000, smooth: bool = False) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, 1e-3, 0.01
        self.max_r, self.max_d = 3.0, 5.0
        self.warmup_steps, self.smooth = warmup_steps, smooth
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.full((num_features,), float(name == "running_var")))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.weight = torch.nn.Parameter(torch.ones(num_features))
        self.bias = torch.nn.Parameter(torch.zeros(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        spread, moving = ((one + self.eps).sqrt() for one in (variance, self.running_var))
        on = float(self.num_batches_tracked >= self.warmup_steps)
        r = (spread.detach() / moving).clamp(1 / self.max_r, self.max_r)
        d = ((mean.detach() - self.running_mean) / moving).clamp(-self.max_d, self.max_d)
        y = (x - mean) / spread * (1 + on * (r - 1)) + on * d
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(x.var(0), self.momentum)
            self.num_batches_tracked += 1
        return y * self.weight + self.bias
