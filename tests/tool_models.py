"""Small models for the tests of the tools, with Keras' own layer or ours, and in PyTorch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from batchnorm.keras import BatchNormalization

KINDS = {"ours": BatchNormalization, "keras": keras.layers.BatchNormalization}


def dense(kind: str, **options: Any) -> keras.Model:
    """Inputs of 5 features, two normalized layers: "first" sees the inputs themselves."""
    normalization = KINDS[kind]
    return keras.Sequential(
        [
            keras.Input((5,)),
            normalization(name="first", **options),
            keras.layers.Dense(7, activation="relu"),
            normalization(name="second", **options),
            keras.layers.Dense(3),
        ]
    )


def rows(count: int, seed: int = 0, mean: float = 30.0) -> np.ndarray:
    """Rows of 5 features with a mean far from 0 and unequal deviations."""
    random = np.random.default_rng(seed)
    scale = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    return (mean + scale * random.standard_normal((count, 5))).astype(np.float32)


def pieces(x: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """The rows cut into batches of these sizes, 0 among them, and one of the rest."""
    return np.split(x, np.cumsum(sizes))


def weights_of(model: Any) -> list[bytes]:
    """Every variable of a Keras model, bit for bit."""
    return [keras.ops.convert_to_numpy(one.value).tobytes() for one in model.variables]


def statistics(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Moving mean and variance of a Keras layer."""
    pair = (layer.moving_mean, layer.moving_variance)
    return tuple(np.asarray(keras.ops.convert_to_numpy(one.value)) for one in pair)


def shake(model: keras.Model, seed: int = 0) -> keras.Model:
    """Statistics and parameters as training leaves them: everywhere different, nowhere 0 and 1."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(random.normal(0, 0.5, shape))
            layer.moving_variance.assign(random.uniform(0.5, 2, shape))
            if layer.gamma is not None:
                layer.gamma.assign(random.choice([-1, 1], shape) * random.uniform(0.5, 1.5, shape))
            if layer.beta is not None:
                layer.beta.assign(random.normal(0, 0.5, shape))
    return model


def reasons(folded: Any) -> dict[str, str]:
    return {one.layer: one.reason for one in folded.folding.refused}


def left(model: Any) -> list[str]:
    return [
        one.name
        for one in model._flatten_layers()
        if isinstance(one, keras.layers.BatchNormalization)
    ]
