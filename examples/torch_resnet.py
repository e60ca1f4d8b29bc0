"""A small ResNet on handwritten digits: converted in one line, trained, frozen, exported.

    python examples/torch_resnet.py
    python examples/torch_resnet.py --out digits.pt2      # runs where batchnorm is not installed

The network is written with `torch.nn`. `convert(model, activation="relu")` makes its batch
normalization ours: each call normalizes, adds the shortcut and takes the ReLU in one kernel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import batchnorm
import batchnorm.torch

TEST = 297  # digits that are kept for testing


class Block(torch.nn.Module):
    """Two convolutions around a shortcut; the ReLUs are in the normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), residual=x)


def network() -> torch.nn.Module:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(16),
        Block(16),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(32),
        Block(32),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )
    batchnorm.torch.convert(model, activation="relu")
    return model


def train(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(100):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8)  # 0 to 16, as they are
    data, held = (images[:-TEST], labels[:-TEST]), (images[-TEST:], labels[-TEST:])
    model = network()
    train(model, *data, arguments.epochs, 0.05)
    print(f"test accuracy {accuracy(model, *held):.3f}")

    before = [norm.running_mean.clone() for norm in norms(model)]
    batchnorm.freeze(model, "statistics")  # the last epoch trains what inference will run
    train(model, *data, 1, 0.005)
    same = all(map(torch.equal, before, [norm.running_mean for norm in norms(model)]))
    print(f"test accuracy {accuracy(model, *held):.3f} after an epoch with frozen statistics")
    print(f"statistics unchanged: {same}")
    if arguments.out:
        # two examples: torch.export takes a size of 1 for a constant
        program = torch.export.export(
            model.eval(), (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, arguments.out)


def norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]


if __name__ == "__main__":
    main()
