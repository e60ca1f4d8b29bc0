"""One layer by itself, in evaluation and in steps of training, by its own framework's gradients.

`transfer` proves with it that two layers do the same. The loss of a step is the sum of squares of
y - t over all values, divided by twice their number per channel; gamma and beta, where they are
trained, go down its gradient.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from batchnorm.tools.norm import Array, Norm

RATE = 0.1


class Trial:
    """A layer in evaluation and training, by itself. Inputs are `[..., C]`, whatever its axes are.

    Shapes: x, y, t `[N, ..., C]`, float32, with the sizes of the layer's axes behind the others.
    """

    def __init__(self, norm: Norm) -> None:
        self._norm = norm

    def evaluated(self, x: Array) -> Array:
        """y in evaluation."""
        return self._back(self._evaluate(self._there(x)), x.shape)

    def trained(self, x: Array, t: Array) -> Array:
        """y in training, behind which parameters and statistics have moved one step."""
        return self._back(self._step(self._there(x), self._there(t)), x.shape)

    def _evaluate(self, x: Any) -> Any:
        raise NotImplementedError

    def _step(self, x: Any, t: Any) -> Any:
        raise NotImplementedError

    def _there(self, x: Array) -> Any:
        """The array with the channels on the layer's own axes, in a rank that it takes."""
        rank, own = x.ndim, self._rank(x.ndim)
        if own != rank:  # positions become rows
            sizes = self._norm.sizes()
            x = x.reshape(-1, *(1,) * (own - 1 - len(sizes)), *sizes)
        axes = self._norm.axes(own)
        return np.ascontiguousarray(np.moveaxis(x, range(own - len(axes), own), axes))

    def _back(self, y: Any, shape: tuple[int, ...]) -> Array:
        axes = self._norm.axes(y.ndim)
        last = range(y.ndim - len(axes), y.ndim)
        return np.moveaxis(np.asarray(y, np.float64), axes, last).reshape(shape)

    def _rank(self, rank: int) -> int:
        """The rank that the layer takes in place of this one."""
        return rank


def _loss(y: Any, t: Any, channels: int) -> Any:
    """The loss of a step on arrays that NumPy's names are known to."""
    return ((y - t) ** 2).sum() * (channels / (2 * t.size))


class TorchTrial(Trial):
    """A PyTorch module."""

    def _evaluate(self, x: Any) -> Any:
        torch, module = sys.modules["torch"], self._norm.layer
        with torch.no_grad(), _mode(module, False):
            return module(self._tensor(x)).double().cpu().numpy()

    def _step(self, x: Any, t: Any) -> Any:
        torch, module = sys.modules["torch"], self._norm.layer
        with torch.enable_grad(), _mode(module, True):  # a frozen one sees to itself
            y = module(self._tensor(x))
            parameters = [one for one in module.parameters() if one.requires_grad]
            loss = ((y - self._tensor(t)) ** 2).sum() * (t.shape[1] / (2 * t.size))
            gradients = torch.autograd.grad(loss, parameters) if parameters else ()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(RATE * gradient)
        return y.detach().double().cpu().numpy()

    def _rank(self, rank: int) -> int:
        torch = sys.modules["torch"]
        for own in (rank, 2, 3, 4, 5):
            with contextlib.suppress(ValueError):
                self._norm.layer._check_input_dim(torch.empty((1,) * own, device="meta"))
                return own
        return rank

    def _tensor(self, x: Array) -> Any:
        mean = self._norm.layer.running_mean
        return sys.modules["torch"].as_tensor(x).to(mean.device, mean.dtype)


@contextlib.contextmanager
def _mode(module: Any, training: bool) -> Iterator[None]:
    """A PyTorch module in training or evaluation mode, a frozen one too."""
    before, module.training = module.training, training
    try:
        yield
    finally:
        module.training = before


class NnxTrial(Trial):
    """An nnx module."""

    def _evaluate(self, x: Any) -> Any:
        return self._norm.layer(self._array(x), use_running_average=True)

    def _step(self, x: Any, t: Any) -> Any:
        return _nnx_step()(self._norm.layer, self._array(x), self._array(t))

    def _array(self, x: Array) -> Any:
        return sys.modules["jax.numpy"].asarray(x)


@functools.cache
def _nnx_step() -> Any:
    """A step of any module: compiled once for all that are alike."""
    nnx = sys.modules["flax.nnx"]

    def loss(module: Any, x: Any, t: Any) -> Any:
        y = module(x, use_running_average=False)
        return _loss(y, t, module.mean[...].size), y

    def step(module: Any, x: Any, t: Any) -> Any:
        gradients, y = nnx.grad(loss, has_aux=True)(module, x, t)
        for name, gradient in gradients.items():
            variable = getattr(module, name)
            variable[...] = variable[...] - RATE * gradient[...]
        return y

    return nnx.jit(step)


class LinenTrial(Trial):
    """A linen module with its variables."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm)
        self._compiled = sys.modules["jax"].jit(self._gradients)

    def _evaluate(self, x: Any) -> Any:
        norm: Any = self._norm
        return norm.apply(norm.state(), x, False)[0]

    def _step(self, x: Any, t: Any) -> Any:
        norm: Any = self._norm
        before = norm.state()
        gradients, (y, new) = self._compiled(before, x, t)
        moved = {k: before["params"][k] - RATE * one for k, one in gradients.items()}
        norm.remember(new | moved)
        return y

    def _gradients(self, state: Any, x: Any, t: Any) -> Any:
        norm: Any = self._norm

        def loss(params: Any) -> Any:
            y, new = norm.apply(state | {"params": params}, x, True)
            return _loss(y, t, state["batch_stats"]["mean"].size), (y, new)

        return sys.modules["jax"].grad(loss, has_aux=True)(state["params"])


class KerasTrial(Trial):
    """A Keras layer, on the backend of the process."""

    def __init__(self, norm: Norm) -> None:
        super().__init__(norm)
        self._compiled: Any = None

    def _rank(self, rank: int) -> int:
        own: int | None = self._norm.layer.input_spec.ndim
        return rank if own is None else own

    def _evaluate(self, x: Any) -> Any:
        keras = sys.modules["keras"]
        return keras.ops.convert_to_numpy(self._norm.layer(x, training=False))

    def _step(self, x: Any, t: Any) -> Any:
        keras, layer = sys.modules["keras"], self._norm.layer
        variables = layer.trainable_variables
        steps = {"tensorflow": self._tensorflow, "jax": self._jax, "torch": self._torch}
        y, gradients = steps[keras.backend.backend()](x, t, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign(variable.value - RATE * gradient)
        return keras.ops.convert_to_numpy(y)

    def _keras_loss(self, y: Any, t: Array) -> Any:
        ops, channels = sys.modules["keras"].ops, len(self._norm.host_statistics()[0])
        return ops.sum((y - ops.cast(t, y.dtype)) ** 2) * (channels / (2 * t.size))

    def _tensorflow(self, x: Any, t: Any, variables: Any) -> Any:
        tf = sys.modules["tensorflow"]
        with tf.GradientTape() as tape:
            y = self._norm.layer(x, training=True)
            loss = self._keras_loss(y, t)
        return y, tape.gradient(loss, [one.value for one in variables])

    def _torch(self, x: Any, t: Any, variables: Any) -> Any:
        torch = sys.modules["torch"]
        with torch.enable_grad():
            y = self._norm.layer(x, training=True)
            loss = self._keras_loss(y, t)
            values = [one.value for one in variables]
            return y.detach(), torch.autograd.grad(loss, values) if values else ()

    def _jax(self, x: Any, t: Any, variables: Any) -> Any:
        layer, jax = self._norm.layer, sys.modules["jax"]
        fixed = layer.non_trainable_variables

        def loss(values: Any, state: Any, x: Any, t: Any) -> Any:
            y, new = layer.stateless_call(values, state, x, training=True)
            return self._keras_loss(y, t), (y, new)

        self._compiled = self._compiled or jax.jit(jax.grad(loss, has_aux=True))
        given = [[one.value for one in of] for of in (variables, fixed)]
        gradients, (y, new) = self._compiled(*given, x, t)
        for variable, value in zip(fixed, new, strict=True):
            variable.assign(value)
        return y, gradients


def trial_of(norm: Norm) -> Trial:
    """The trial for a layer of its kind."""
    if hasattr(norm, "apply"):
        return LinenTrial(norm)
    return {"PyTorch": TorchTrial, "flax": NnxTrial, "Keras": KerasTrial}[norm.framework](norm)
