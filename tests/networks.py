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
