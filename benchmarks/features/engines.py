"""The engines under one surface: make(shape, options) -> layer; train, infer, statistics of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.features.truth import EPSILON, to_numpy


class Missing(Exception):
    """The engine has no such option."""


class Keras:
    """Any layer with the surface of Keras: ours, Keras 3's, tf_keras's."""

    def __init__(self, name: str) -> None:
        self.ours = name.startswith("ours")
        self.backend = "tensorflow" if name == "tf_keras" else name.partition("-")[2]
        if self.backend == "tensorflow":
            import tensorflow as tf

            cpu = tf.config.list_physical_devices("CPU")[0]
            one = tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(cpu, [one, one])  # for two replicas
            self.tf = tf
        if name == "tf_keras":
            import tf_keras as keras
        else:
            import keras
        self.layer = keras.layers.BatchNormalization
        self.version = keras.__version__
        if self.ours:
            import batchnorm
            from batchnorm.keras import BatchNormalization

            self.layer, self.version = BatchNormalization, batchnorm.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        try:
            layer = self.layer(**{"momentum": 0.5, "epsilon": EPSILON, **options})
        except (TypeError, ValueError) as error:
            raise Missing(str(error)) from error
        layer.build(shape)
        return layer

    def tensor(self, x: Any) -> Any:
        if self.backend == "tensorflow":
            return self.tf.constant(x)
        if self.backend == "jax":
            import jax.numpy as jnp

            return jnp.asarray(x)
        import torch

        return torch.as_tensor(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        call = {name: self.tensor(value) for name, value in call.items()}
        return to_numpy(layer(self.tensor(x), training=True, **call))

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return to_numpy(layer(self.tensor(x), training=False))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        return to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.ours:
            return self.train(layer, x, batch_weights=weights)
        if x.ndim == 2:  # the nearest thing: a float mask
            return self.train(layer, x, mask=weights)
        raise Missing("no weights")

    def function(self, layer: Any) -> Callable[[Any], Any]:
        """x -> y in training, without a side effect that a derivative could trip over."""
        if self.backend != "jax":
            return lambda x: layer(x, training=True)
        held = [v.value for v in layer.trainable_variables]
        free = [v.value for v in layer.non_trainable_variables]
        return lambda x: layer.stateless_call(held, free, x, training=True)[0]

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled(self.backend, self.function(layer), self.tensor(x))


class Torch:
    """torch.nn.BatchNorm1d and 2d."""

    backend = "torch"
    ours = False

    def __init__(self, name: str) -> None:
        import torch

        self.torch = torch
        self.version = torch.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        if options.pop("axis", 1) != 1 or options:
            raise Missing(f"no {options}")
        kind = self.torch.nn.BatchNorm2d if len(shape) == 4 else self.torch.nn.BatchNorm1d
        return kind(shape[1], eps=EPSILON, momentum=0.5)

    def tensor(self, x: Any) -> Any:
        return self.torch.as_tensor(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        if call:
            raise Missing(f"no {list(call)}")
        return to_numpy(layer.train()(self.tensor(x)))

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return to_numpy(layer.eval()(self.tensor(x)))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        return to_numpy(layer.running_mean), to_numpy(layer.running_var)

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        raise Missing("no weights")

    def function(self, layer: Any) -> Callable[[Any], Any]:
        return layer.train()

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled("torch", self.function(layer), self.tensor(x))


class Flax:
    """flax.linen.BatchNorm."""

    backend = "jax"
    ours = False

    def __init__(self, name: str) -> None:
        import flax

        self.version = flax.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        import flax.linen as nn
        import jax

        if missing := set(options) - {"axis", "dtype", "axis_name"}:
            raise Missing(f"no {missing}")
        module = nn.BatchNorm(use_running_average=False, momentum=0.5, epsilon=EPSILON, **options)
        return [module, module.init(jax.random.key(0), np.ones(shape, "float32"))]

    def tensor(self, x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        module, variables = layer
        if "mask" in call:  # flax broadcasts it from the right
            axis = module.axis
            call = {"mask": self.tensor(np.expand_dims(call["mask"], axis))}
        y, new = module.apply(variables, self.tensor(x), mutable=["batch_stats"], **call)
        layer[1] = {**variables, **new}
        return to_numpy(y)

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        module, variables = layer
        return to_numpy(module.apply(variables, self.tensor(x), use_running_average=True))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        kept = layer[1]["batch_stats"]
        return to_numpy(kept["mean"]), to_numpy(kept["var"])

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return self.train(layer, x, mask=weights)

    def function(self, layer: Any) -> Callable[[Any], Any]:
        module, variables = layer
        return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled("jax", self.function(layer), self.tensor(x))


def compiled(backend: str, function: Callable[[Any], Any], x: Any) -> np.ndarray:
    if backend == "tensorflow":
        import tensorflow as tf

        return to_numpy(tf.function(function, jit_compile=True)(x))
    if backend == "jax":
        import jax

        return to_numpy(jax.jit(function)(x))
    import torch

    return to_numpy(torch.compile(function)(x))


def engine(name: str) -> Any:
    return {"torch": Torch, "flax": Flax}.get(name, Keras)(name)


def channels_axis(e: Any) -> int:
    return 1 if isinstance(e, Torch) else -1
