"""A training step of a small ResNet in Keras, with our layers and with Keras' own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from batchnorm.keras import BatchNormalization
from benchmarks.cases import Case, Settings, Size
from benchmarks.timing import Call, Contest

FULL, QUICK = Size(128, 3, (32, 32)), Size(4, 3, (8, 8))
WIDTHS, BLOCKS = (32, 64, 128), 2
CLASSES = 10


def cases(settings: Settings) -> list[Case]:
    """One: the images of a batch. In float32, channels last, as Keras has them by default."""
    size = QUICK if settings.quick else FULL
    return [Case("training step", size, "float32", keras.config.image_data_format()[9:])]


def contest(case: Case, settings: Settings) -> Contest:
    """Our layers in place of Keras', and with ReLU inside them."""
    generator = np.random.default_rng(1)
    shape = case.size.shape(case.layout)
    images = generator.standard_normal(shape).astype(np.float32)
    labels = generator.integers(0, CLASSES, case.size.n)

    def step(normalized: Callable[[Any, bool], Any]) -> Call:
        keras.utils.set_random_seed(1)
        model = resnet(shape[1:], normalized, settings.quick)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        # Returns the loss as a number, so it waits for the step to end.
        return functools.partial(model.train_on_batch, images, labels)

    return Contest(
        {"ours": step(then_relu(BatchNormalization)), "ours, activation='relu'": step(_inside)},
        peers={"keras.layers.BatchNormalization": step(then_relu(keras.layers.BatchNormalization))},
        longer=6,  # a step takes a second
    )


def then_relu(layer: Callable[[], Any]) -> Callable[[Any, bool], Any]:
    """A layer, and ReLU after it where the network has one."""

    def normalized(x: Any, relu: bool) -> Any:
        y = layer()(x)
        return keras.layers.ReLU()(y) if relu else y

    return normalized


def _inside(x: Any, relu: bool) -> Any:
    return BatchNormalization(activation="relu" if relu else None)(x)


def resnet(
    shape: tuple[int, ...], normalized: Callable[[Any, bool], Any], quick: bool = False
) -> keras.Model:
    """Three stages of residual blocks, 32 to 128 channels.

    Reference: He et al. 2016, "Deep residual learning", section 4.2.
    """

    def convolution(x: Any, width: int, stride: int = 1, kernel: int = 3) -> Any:
        layer = keras.layers.Conv2D(width, kernel, strides=stride, padding="same", use_bias=False)
        return layer(x)

    images = keras.Input(shape)
    x = normalized(convolution(images, WIDTHS[0]), True)
    for stage, width in enumerate(WIDTHS):
        for block in range(1 if quick else BLOCKS):
            stride = 2 if stage > 0 and block == 0 else 1
            y = normalized(convolution(x, width, stride), True)
            y = normalized(convolution(y, width), False)
            if stride > 1:
                x = normalized(convolution(x, width, stride, kernel=1), False)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(CLASSES)(x))
