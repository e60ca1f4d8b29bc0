"""The small ResNet of `models.py` in plain PyTorch modules."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.questions.models import BLOCKS, CLASSES, WIDTHS


class Block(nn.Module):
    """Two convolutions and a way past them.

    Reference: He et al. 2016, "Deep residual learning", section 3.3.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *_normalized(before, width, stride), nn.ReLU(), *_normalized(width, width)
        )
        past = _normalized(before, width, stride, kernel=1) if stride > 1 else ()
        self.past = nn.Sequential(*past)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.path(x) + self.past(x))


def resnet(channels: int, quick: bool = False) -> nn.Module:
    """`[N, channels, H, W]` -> `[N, 10]`, with `nn.BatchNorm2d`."""
    layers: list[nn.Module] = [*_normalized(channels, WIDTHS[0]), nn.ReLU()]
    before = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for block in range(1 if quick else BLOCKS):
            layers.append(Block(before, width, 2 if stage > 0 and block == 0 else 1))
            before = width
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))
    return nn.Sequential(*layers, *end)


def _normalized(
    before: int, width: int, stride: int = 1, kernel: int = 3
) -> tuple[nn.Module, nn.Module]:
    padding = kernel // 2
    convolution = nn.Conv2d(before, width, kernel, stride, padding, bias=False)
    return convolution, nn.BatchNorm2d(width)
