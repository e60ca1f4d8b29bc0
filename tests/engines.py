"""The three frameworks behind one face, for tests: arrays in, arrays out, gradients, compilers.

`step(fn)` etc. take functions of framework tensors, such as `batchnorm.batch_norm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import batchnorm


class Engine:
    """One framework. `modes` names its ways to run a function; the first is eager."""

    name: str
    modes: tuple[str, ...]

    def tensor(self, value: Any, dtype: str | None = None) -> Any:
        raise NotImplementedError

    def numpy(self, value: Any) -> np.ndarray:
        raise NotImplementedError

    def run(self, function: Callable, *args: Any, mode: str = "eager") -> Any:
        """`function(*args)`, compiled as `mode` says."""
        raise NotImplementedError

    def gradients(self, function: Callable, *args: Any, mode: str = "eager") -> tuple[Any, list]:
        """`(value, extra), [d value / d arg]` of a function that returns (scalar, extra)."""
        raise NotImplementedError

    def hvp(self, function: Callable, args: list, directions: list) -> list:
        """Hessian of a scalar function of `args`, times `directions`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


class Jax(Engine):
    name, modes = "jax", ("eager", "jit")

    def tensor(self, value, dtype=None):
        import jax.numpy as jnp

        return jnp.asarray(value, dtype)

    def numpy(self, value):
        return np.asarray(value).astype("float64" if value.dtype.kind not in "ib" else value.dtype)

    def run(self, function, *args, mode="eager"):
        import jax

        return (jax.jit(function) if mode == "jit" else function)(*args)

    def gradients(self, function, *args, mode="eager"):
        import jax

        gradient = jax.value_and_grad(function, tuple(range(len(args))), has_aux=True)
        value, grads = self.run(gradient, *args, mode=mode)
        return value, list(grads)

    def hvp(self, function, args, directions):
        import jax

        def slope(*at):
            grads = jax.grad(function, tuple(range(len(at))))(*at)
            return sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

        return list(jax.grad(slope, tuple(range(len(args))))(*args))


class Torch(Engine):
    name, modes = "torch", ("eager", "compile")

    def tensor(self, value, dtype=None):
        import torch

        tensor = torch.as_tensor(np.array(value))
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))

    def numpy(self, value):
        value = value.detach()
        return (value.double() if value.is_floating_point() else value).numpy()

    def run(self, function, *args, mode="eager"):
        import torch

        if mode == "eager":
            return function(*args)
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True)(*args)

    def gradients(self, function, *args, mode="eager"):
        import torch

        args = [arg.detach().clone().requires_grad_(arg.is_floating_point()) for arg in args]
        value, extra = self.run(function, *args, mode=mode)
        wanted = [arg for arg in args if arg.requires_grad]
        grads = iter(torch.autograd.grad(value, wanted, allow_unused=True))
        return (value, extra), [next(grads) if arg.requires_grad else None for arg in args]

    def hvp(self, function, args, directions):
        import torch

        args = [arg.detach().clone().requires_grad_() for arg in args]
        grads = torch.autograd.grad(function(*args), args, create_graph=True)
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        return list(torch.autograd.grad(slope, args))


class TensorFlow(Engine):
    name, modes = "tensorflow", ("eager", "graph", "xla")

    def tensor(self, value, dtype=None):
        import tensorflow as tf

        return tf.cast(tf.constant(np.asarray(value)), dtype or np.asarray(value).dtype)

    def numpy(self, value):
        import tensorflow as tf

        return (tf.cast(value, tf.float64) if value.dtype.is_floating else value).numpy()

    def run(self, function, *args, mode="eager"):
        import tensorflow as tf

        if mode == "eager":
            return function(*args)
        return tf.function(function, jit_compile=mode == "xla")(*args)

    def gradients(self, function, *args, mode="eager"):
        import tensorflow as tf

        def call(*at):
            with tf.GradientTape() as tape:
                for one in at:
                    tape.watch(one)
                value, extra = function(*at)
            return (value, extra), tape.gradient(value, list(at))

        return self.run(call, *args, mode=mode)

    def hvp(self, function, args, directions):
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(args)
            with tf.GradientTape() as inner:
                inner.watch(args)
                value = function(*args)
            grads = inner.gradient(value, args)
            slope = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(grads, directions, strict=True)])
        return outer.gradient(slope, args)


ENGINES: dict[str, Engine] = {engine.name: engine for engine in (TensorFlow(), Jax(), Torch())}


def total(product: Any) -> Any:
    """The sum of a tensor of any framework."""
    if hasattr(product, "sum"):
        return product.sum()
    import tensorflow as tf

    return tf.reduce_sum(product)


def batch_norm(
    engine: Engine,
    x: np.ndarray,
    parameters: dict[str, np.ndarray],
    state: dict[str, np.ndarray],
    *,
    dy: np.ndarray | None = None,
    mode: str = "eager",
    dtype: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`batchnorm.batch_norm` on arrays: y and the new state; with dy also d sum(y * dy).

    Returns: {"y", "state": {...}} and, with dy, {"dx", "gamma", "beta"} (those that exist), all
    float64 arrays.
    """
    names = list(parameters)
    tensors = [engine.tensor(x, dtype)] + [engine.tensor(parameters[name]) for name in names]
    held = {name: engine.tensor(value) for name, value in state.items()}

    def forward(x, *vectors):
        return batchnorm.batch_norm(x, dict(zip(names, vectors, strict=True)), held, **options)

    if dy is None:
        y, new = engine.run(forward, *tensors, mode=mode)
        result: dict[str, Any] = {}
    else:
        upstream = engine.tensor(dy, dtype)

        def loss(x, *vectors):
            y, new = forward(x, *vectors)
            return total(y * upstream), (y, new)

        (_, (y, new)), grads = engine.gradients(loss, *tensors, mode=mode)
        result = dict(
            zip(
                ("dx", *names), [None if g is None else engine.numpy(g) for g in grads], strict=True
            )
        )
    result["y"] = engine.numpy(y)
    result["state"] = {name: engine.numpy(value) for name, value in new.items()}
    return result
