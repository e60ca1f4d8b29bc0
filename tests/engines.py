"""The three frameworks behind one face, for tests: arrays in, arrays out, gradients, compilers.

Functions are of framework tensors, such as `batchnorm.batch_norm`; `stepper` is from arrays to
arrays.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import batchnorm


class Engine:
    """One framework.

    `modes` names its ways to run a function; the first is eager. `quick` is the one that costs
    least where every call has another shape. `errors` are what a failed check at run time raises.
    """

    name: str
    modes: tuple[str, ...]
    quick = "eager"

    @property
    def ops(self) -> Any:
        """The package's backend for this framework."""
        return importlib.import_module(f"batchnorm.backends.{self.name}")

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        raise NotImplementedError

    def tensor(self, value: Any, dtype: str | None = None) -> Any:
        raise NotImplementedError

    def numpy(self, value: Any) -> np.ndarray:
        raise NotImplementedError

    def precision(self, dtype: str) -> Any:
        """A context in which the framework can hold this type."""
        return contextlib.nullcontext()

    def compile(self, function: Callable, mode: str) -> Callable:
        """The function, compiled as `mode` says."""
        raise NotImplementedError

    def run(self, function: Callable, *args: Any, mode: str = "eager") -> Any:
        """`function(*args)`, compiled as `mode` says."""
        return self.compile(function, mode)(*args)

    def with_gradients(self, function: Callable, mode: str) -> Callable:
        """Of `function(differentiated, *constants) -> (scalar, extra)`: a function that returns
        `(scalar, extra), gradients`, the gradients in the structure of `differentiated`."""
        raise NotImplementedError

    def gradients(self, function: Callable, *args: Any, mode: str = "eager") -> tuple[Any, list]:
        """`(value, extra), [d value / d arg]` of a function that returns (scalar, extra)."""
        return self.with_gradients(lambda args: function(*args), mode)(list(args))

    def checkpoint(self, function: Callable) -> Callable:
        """The function, whose values are computed again for its derivative."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until everything that was started is done, callbacks included."""

    def hvp(self, function: Callable, args: list, directions: list) -> list:
        """Hessian of a scalar function of `args`, times `directions`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name


class Jax(Engine):
    name, modes, quick = "jax", ("eager", "jit"), "jit"

    @property
    def errors(self):
        import jax

        return (jax.errors.JaxRuntimeError,)

    def tensor(self, value, dtype=None):
        import jax.numpy as jnp

        return jnp.asarray(value, dtype)

    def numpy(self, value):
        return np.asarray(value).astype("float64" if value.dtype.kind not in "ib" else value.dtype)

    def checkpoint(self, function):
        import jax

        return jax.checkpoint(function)

    def wait(self):
        import jax

        jax.effects_barrier()

    def precision(self, dtype):
        import jax

        return jax.enable_x64(dtype == "float64")

    def compile(self, function, mode):
        import jax

        return jax.jit(function) if mode == "jit" else function

    def with_gradients(self, function, mode):
        import jax

        return self.compile(jax.value_and_grad(function, has_aux=True), mode)

    def hvp(self, function, args, directions):
        import jax

        def slope(*at):
            grads = jax.grad(function, tuple(range(len(at))))(*at)
            return sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

        return list(jax.grad(slope, tuple(range(len(args))))(*args))


class Torch(Engine):
    name, modes = "torch", ("eager", "compile")
    errors = (RuntimeError,)
    # JAX and TensorFlow take the GPU where there is one; PyTorch wants to be told.
    device = os.environ.get("BATCHNORM_TEST_DEVICE", "cpu")

    def checkpoint(self, function):
        from torch.utils.checkpoint import checkpoint

        return lambda *args: checkpoint(function, *args, use_reentrant=False)

    def tensor(self, value, dtype=None):
        import torch

        tensor = torch.as_tensor(np.array(value), device=self.device)
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))

    def numpy(self, value):
        value = value.detach()
        return (value.double() if value.is_floating_point() else value).numpy(force=True)

    def compile(self, function, mode):
        import torch

        if mode == "eager":
            return function
        torch._dynamo.reset()  # it counts the compilations of a code object, up to a limit
        return torch.compile(function, fullgraph=True)

    def with_gradients(self, function, mode):
        import torch
        from torch.utils import _pytree as pytree

        forward = self.compile(function, mode)

        def call(differentiated, *constants):
            leaves, structure = pytree.tree_flatten(differentiated)
            leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            value, extra = forward(pytree.tree_unflatten(leaves, structure), *constants)
            grads = torch.autograd.grad(value, leaves, materialize_grads=True)
            return (value, extra), pytree.tree_unflatten(grads, structure)

        return call

    def hvp(self, function, args, directions):
        import torch

        args = [arg.detach().clone().requires_grad_() for arg in args]
        grads = torch.autograd.grad(function(*args), args, create_graph=True)
        slope = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        return list(torch.autograd.grad(slope, args))


class TensorFlow(Engine):
    name, modes = "tensorflow", ("eager", "graph", "xla")

    @property
    def errors(self):
        import tensorflow as tf

        return (tf.errors.InvalidArgumentError,)

    def checkpoint(self, function):
        import tensorflow as tf

        return tf.recompute_grad(function)

    def tensor(self, value, dtype=None):
        import tensorflow as tf

        return tf.cast(tf.constant(np.asarray(value)), dtype or np.asarray(value).dtype)

    def numpy(self, value):
        import tensorflow as tf

        return (tf.cast(value, tf.float64) if value.dtype.is_floating else value).numpy()

    def compile(self, function, mode):
        import tensorflow as tf

        if mode == "eager":
            return function
        return tf.function(function, jit_compile=mode == "xla", autograph=False)

    def with_gradients(self, function, mode):
        import tensorflow as tf

        def call(differentiated, *constants):
            with tf.GradientTape() as tape:
                tape.watch(differentiated)
                value, extra = function(differentiated, *constants)
            unconnected = tf.UnconnectedGradients.ZERO
            grads = tape.gradient(value, differentiated, unconnected_gradients=unconnected)
            return (value, extra), grads

        return self.compile(call, mode)

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


def stepper(engine: Engine, mode: str = "eager", **options: Any) -> Callable:
    """`batchnorm.batch_norm` with these options and its gradients, from arrays to arrays.

    Compiled once as `mode` says, for any number of calls. What a call gives beside x, parameters
    and state (mask, batch_weights, a tensor `training`) are tensors of the compiled function.
    Each call returns {"y", "state", "dx", "gamma", "beta"}, the derivatives those of sum(y * dy).
    """

    def loss(differentiated, state, upstream, given):
        x, parameters = differentiated
        y, new = batchnorm.batch_norm(x, parameters, state, **options, **given)
        return total(y * upstream), (y, new)

    function = engine.with_gradients(loss, mode)

    def step(
        x: np.ndarray,
        parameters: dict[str, np.ndarray],
        state: dict[str, np.ndarray],
        *,
        dy: np.ndarray | None = None,
        dtype: str | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        def tensors(arrays):
            return {name: engine.tensor(value) for name, value in arrays.items()}

        upstream = engine.tensor(np.ones_like(x) if dy is None else dy, dtype)
        differentiated = (engine.tensor(x, dtype), tensors(parameters))
        result = function(differentiated, tensors(state), upstream, tensors(given))
        (_, (y, new)), (dx, slopes) = result
        arrays = {name: engine.numpy(value) for name, value in slopes.items()}
        arrays |= {"y": engine.numpy(y), "dx": engine.numpy(dx)}
        return arrays | {"state": {name: engine.numpy(value) for name, value in new.items()}}

    return step
