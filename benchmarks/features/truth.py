"""What a batch normalization must give, in a few lines of NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-3
random = np.random.default_rng(0)


def start_anew() -> None:
    """Every probe of every engine draws the same data."""
    random.bit_generator.state = np.random.default_rng(0).bit_generator.state


def to_numpy(x: Any) -> np.ndarray:
    x = getattr(x, "value", x) if type(x).__module__.startswith("keras.") else x
    if hasattr(x, "detach"):
        x = x.detach().float() if str(x.dtype) == "torch.bfloat16" else x.detach()
    return np.asarray(x, "float64")


def moments(x: np.ndarray, weights: Any, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype("float64")
    weights = np.broadcast_to(np.asarray(1.0 if weights is None else weights, "float64"), x.shape)
    total = weights.sum(axes, keepdims=True)
    mean = (weights * x).sum(axes, keepdims=True) / total
    return mean, (weights * (x - mean) ** 2).sum(axes, keepdims=True) / total


def normalized(x: np.ndarray, axes: tuple[int, ...], weights: Any = None) -> np.ndarray:
    mean, variance = moments(x, weights, axes)
    return (x.astype("float64") - mean) / np.sqrt(variance + EPSILON)


def data(*shape: int, mean: float = 1.0) -> np.ndarray:
    return (mean + random.standard_normal(shape)).astype("float32")


def same(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> bool:
    return got.shape == expected.shape and bool(np.all(np.abs(got - expected) <= tolerance))
