"""Models of every framework that `transfer` goes between, with two normalized layers each."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import torch
from flax import linen, nnx

import batchnorm.flax
import batchnorm.flax.linen
import batchnorm.torch

CHANNELS = (5, 7)
X = np.random.default_rng(0).normal(1, 2, (96, 5)).astype(np.float32)


def torch_model(kind: Any = torch.nn.BatchNorm1d, **options: Any) -> torch.nn.Module:
    """Statistics and parameters as training leaves them: everywhere different, nowhere 0 and 1."""
    random = np.random.default_rng(3)
    first, last = (kind(size, **options) for size in CHANNELS)
    for module in (first, last):
        for name, tensor in module.state_dict().items():
            if tensor.ndim:
                low, high = (-1, 1) if name.endswith(("bias", "mean")) else (0.5, 2)
                tensor.copy_(torch.as_tensor(random.uniform(low, high, tensor.shape)))
        module.num_batches_tracked.fill_(9)
    return torch.nn.Sequential(first, torch.nn.Linear(*CHANNELS), torch.nn.ReLU(), last)


class Nnx(nnx.Module):
    """The order of its attributes is not that of their names."""

    def __init__(self, kind: Any = batchnorm.flax.BatchNorm, **options: Any) -> None:
        rngs = nnx.Rngs(0)
        self.second_to_none = kind(CHANNELS[0], rngs=rngs, **options)
        self.dense = nnx.Linear(*CHANNELS, rngs=rngs)
        self.after = kind(CHANNELS[1], rngs=rngs, **options)

    def __call__(self, x: Any) -> Any:
        return self.after(jax.nn.relu(self.dense(self.second_to_none(x))))


class Linen(linen.Module):
    make: Any

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = self.make(use_running_average=not train, name="one")(x)
        x = linen.relu(linen.Dense(CHANNELS[1])(x))
        return self.make(use_running_average=not train, name="two")(x)


def linen_model(kind: Any = batchnorm.flax.linen.BatchNorm, **options: Any) -> tuple[Any, ...]:
    module = Linen(functools.partial(kind, **options))
    return module, module.init(jax.random.key(0), X), X


def numbers_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Everything that the normalizations of a PyTorch model hold."""
    return {
        name: value.numpy().copy()
        for name, value in model.state_dict().items()
        if name.split(".")[0] in ("0", "3")
    }
