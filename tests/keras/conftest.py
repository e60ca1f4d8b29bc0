"""What the tests of the Keras layers share: the framework of this process's Keras backend.

A folder without `__init__.py`: the package `keras` is found before it on every path.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import engines


@pytest.fixture(scope="session")
def engine() -> engines.Engine:
    """The framework that Keras computes with here; see `tests/engines.py`."""
    return engines.ENGINES[keras.backend.backend()]


@pytest.fixture
def wide(engine: engines.Engine) -> Callable[[str | None], Any]:
    """`with wide(dtype):` lets JAX have float64, which is off by default."""

    def scope(dtype: str | None = "float64") -> Any:
        if engine.name == "jax" and dtype == "float64":
            import jax

            return jax.enable_x64(True)
        return contextlib.nullcontext()

    return scope


@pytest.fixture
def state_of(engine: engines.Engine) -> Callable[[Any], dict[str, np.ndarray]]:
    """Everything that a layer remembers, by name, as it is now."""
    return lambda layer: {
        variable.name: np.array(engine.numpy(variable.value))
        for variable in layer.non_trainable_variables
        if variable.name not in ("gamma", "beta")
    }


@pytest.fixture
def step(engine: engines.Engine) -> Callable[..., dict[str, np.ndarray]]:
    """`step(layer, x, dy, **call)`: a call, with what it returns and d sum(y * dy).

    Returns y, dx and the gradients of the trainable variables by name, as float64 arrays. x has
    the type that the layer computes with.
    """

    def run(layer: Any, x: Any, dy: Any, **call: Any) -> dict[str, np.ndarray]:
        x = engine.tensor(np.asarray(x), layer.compute_dtype)
        dy = engine.tensor(np.asarray(dy), layer.compute_dtype)
        if not layer.built:
            layer.build(tuple(x.shape))
        y, gradients = _GRADIENTS[engine.name](layer, x, dy, call)
        names = ["dx", *(variable.name for variable in layer.trainable_variables)]
        result = {
            name: None if gradient is None else engine.numpy(gradient)
            for name, gradient in zip(names, gradients, strict=True)
        }
        result["y"] = engine.numpy(y)
        return result

    return run


def _tensorflow_gradients(layer: Any, x: Any, dy: Any, call: dict[str, Any]) -> tuple[Any, list]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **call)
        loss = tf.reduce_sum(y * dy)
    return y, tape.gradient(loss, [x, *(one.value for one in layer.trainable_variables)])


def _jax_gradients(layer: Any, x: Any, dy: Any, call: dict[str, Any]) -> tuple[Any, list]:
    held = [variable.value for variable in layer.non_trainable_variables]
    traced = {name: value for name, value in call.items() if not np.isscalar(value)}
    fixed = tuple((name, value) for name, value in call.items() if np.isscalar(value))
    switches = (layer.trainable, layer.statistics, layer.update_statistics)
    gradient = _jax_gradient(layer, fixed, switches)
    parameters = [variable.value for variable in layer.trainable_variables]
    (dx, rest), (y, new) = gradient(x, parameters, held, dy, traced)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    return y, [dx, *rest]


@functools.lru_cache(maxsize=1)  # the steps of one layer are compiled once
def _jax_gradient(layer: Any, fixed: tuple, switches: tuple) -> Any:
    import jax

    def loss(x: Any, parameters: list, held: list, dy: Any, traced: dict) -> tuple[Any, Any]:
        y, new = layer.stateless_call(parameters, held, x, **dict(fixed), **traced)
        return (y * dy).sum(), (y, new)

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


def _torch_gradients(layer: Any, x: Any, dy: Any, call: dict[str, Any]) -> tuple[Any, list]:
    import torch

    x.requires_grad_()
    y = layer(x, **call)
    wanted = [x, *(one.value for one in layer.trainable_variables)]
    return y, list(torch.autograd.grad((y * dy).sum(), wanted, allow_unused=True))


_GRADIENTS = {
    "tensorflow": _tensorflow_gradients,
    "jax": _jax_gradients,
    "torch": _torch_gradients,
}
