"""Sick models, each made on purpose, with the layer and the cause that the inspector must name.

Real handwritten digits run through a small network, of Keras layers or PyTorch modules; what makes
a model sick is how its statistics were (not) learned. The pictures of docs/tools.md are made from
the same models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch

import batchnorm
from batchnorm.demo.data import load
from tool_models import KINDS

SIZE = 100  # rows of a batch


@dataclass(frozen=True)
class Sick:
    """A model, the data it is inspected with, and what is wrong: None for a healthy one."""

    words: str
    layer: str | None
    cause: str | None
    make: Callable[[str], tuple[Any, Sequence[np.ndarray]]]


def network(kind: str, momentum: float = 0.9) -> Any:
    """Digits as rows of 64 pixels, and three normalized layers."""
    if kind == "torch":
        return _modules(momentum)
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((64,))
    for index in (1, 2, 3):
        x = keras.layers.Dense(32)(x)
        x = KINDS[kind](momentum=momentum, name=f"norm{index}")(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def _modules(momentum: float) -> torch.nn.Module:
    torch.manual_seed(3)
    model = torch.nn.Sequential()
    for index in (1, 2, 3):
        model.add_module(f"linear{index}", torch.nn.Linear(64 if index == 1 else 32, 32))
        model.add_module(f"norm{index}", torch.nn.BatchNorm1d(32, momentum=1 - momentum))
        model.add_module(f"relu{index}", torch.nn.ReLU())
    model.add_module("end", torch.nn.Linear(32, 10))
    return model


def shuffled(size: int = SIZE) -> list[np.ndarray]:
    """The training images in batches, as they come."""
    images = load().train_images.reshape(-1, 64)
    return [images[start : start + size] for start in range(0, len(images) - size + 1, size)]


def sorted_by_class() -> list[np.ndarray]:
    """Batches that hold one digit each."""
    digits = load()
    images = digits.train_images.reshape(-1, 64)
    return [images[digits.train_labels == label][:SIZE] for label in range(10)]


def learn(model: Any, batches: Sequence[np.ndarray], steps: int, training: bool = True) -> Any:
    """Lets the moving statistics learn from so many batches; returns the model."""
    for step in range(steps):
        batch = batches[step % len(batches)]
        if isinstance(model, keras.Model):
            model(batch, training=training)
        else:
            with torch.no_grad():
                model.train(training)(torch.as_tensor(batch))
    return model


def _healthy(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind), shuffled(), 60), shuffled()


def _slow(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind, momentum=0.999), shuffled(), 30), shuffled()


def _poisoned(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    model, data = _healthy(kind)
    if kind == "torch":
        model.norm2.running_var[5] = np.nan
        return model, data
    variance = model.get_layer("norm2").moving_variance
    value = np.array(keras.ops.convert_to_numpy(variance.value))
    value[5] = np.nan
    variance.assign(value)
    return model, data


def _unlike(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind), sorted_by_class(), 60), sorted_by_class()


def _frozen(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    model = network(kind)
    batchnorm.freeze(model, pattern="norm2")
    return learn(model, shuffled(), 60), shuffled()


def _never(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind), shuffled(), 60, training=False), shuffled()


def _tiny(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind, momentum=0.98), shuffled(4), 290), shuffled(4)


def _other(kind: str) -> tuple[Any, Sequence[np.ndarray]]:
    return learn(network(kind), shuffled(), 60), [1 - images for images in shuffled()]


GALLERY = {
    "healthy": Sick("60 batches at momentum 0.9, shuffled", None, None, _healthy),
    "momentum too slow": Sick("30 batches at momentum 0.999", "norm1", "too slow", _slow),
    "poisoned": Sick(
        "one channel's moving variance is NaN, from a checkpoint", "norm2", "poisoned", _poisoned
    ),
    "batches not i.i.d.": Sick(
        "each batch holds one digit only", "norm1", "unlike batches", _unlike
    ),
    "frozen by mistake": Sick(
        "the middle layer was frozen before training", "norm2", "frozen", _frozen
    ),
    "updates never ran": Sick(
        "training called the model without training=True", "norm1", "never updated", _never
    ),
    "tiny batches": Sick("batches of 4 rows", "norm1", "tiny groups", _tiny),
    "other data": Sick(
        "trained on dark digits on white, evaluated on white on dark", "norm1", "other data", _other
    ),
}
