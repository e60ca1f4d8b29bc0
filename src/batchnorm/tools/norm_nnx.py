"""flax's nnx modules under the names of `Norm`, and models of them run. Imported once flax is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from batchnorm import _axes
from batchnorm.flax.options import COUNTERS, hashable
from batchnorm.tools.norm import AUTO, HELD, Array, Frozen, Norm, Stance, said_trained
from batchnorm.tools.norm_own import Own

MODES = ("use_running_average", "deterministic")  # what `train()` and `eval()` set


def modules(model: Any) -> dict[str, Any]:
    """The batch normalizations, by their path in the model, in the order of its attributes."""
    found = [one for one in nnx.iter_modules(model) if isinstance(one[1], nnx.BatchNorm)]
    found.sort(key=lambda one: _place(model, one[0]))  # nnx sorts them by name
    return {".".join(map(str, path)) or type(module).__name__: module for path, module in found}


def _place(node: Any, path: tuple[Any, ...]) -> list[int]:
    """Where a path leads, by the numbers of attributes, keys and items in each object."""
    result = []
    for part in path:
        if isinstance(part, int):
            result.append(part)
        else:
            keys = list(node if isinstance(node, Mapping) else vars(node))
            result.append(keys.index(part) if part in keys else len(keys))
        own = isinstance(part, str) and hasattr(node, part)
        node = getattr(node, part) if own else node[part]
    return result


def norm_of(module: Any, name: str) -> Norm:
    """The module as what it is: ours, or flax's own."""
    ours = sys.modules.get("batchnorm.flax.modules")
    own = ours is not None and isinstance(module, ours.BatchNorm)
    return (OwnNnxNorm if own else NnxNorm)(module, name)


class NnxNorm(Norm):
    """flax's own `nnx.BatchNorm`."""

    framework = "flax"
    stances: tuple[Stance, ...] | None = (AUTO,)

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.momentum, self.epsilon = layer.momentum, layer.epsilon

    def _remembering(self) -> dict[str, Any]:
        """The variables of each channel, in the core's names."""
        return {"moving_mean": self.layer.mean, "moving_variance": self.layer.var}

    def host_statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.mean), _flat(self.layer.var)

    def put(self, values: dict[str, Array], which: Array | None = None) -> None:
        held = self._remembering()
        for name, value in values.items():
            if name in held:
                old = _flat(held[name])
                _put(held[name], value if which is None else np.where(which, value, old))

    def host_memory(self) -> dict[str, Array]:
        return {name: _flat(one) for name, one in self._remembering().items()}

    def device_statistics(self, dtype: str) -> tuple[Any, Any]:
        return tuple(
            jnp.reshape(one[...], (1, -1)).astype(dtype)
            for one in (self.layer.mean, self.layer.var)
        )

    def set_device_statistics(self, mean: Any, variance: Any) -> None:
        _put(self.layer.mean, mean)
        _put(self.layer.var, variance)

    def host_parameters(self) -> tuple[Array | None, Array | None]:
        gamma, beta = self.layer.scale, self.layer.bias
        return None if gamma is None else _flat(gamma), None if beta is None else _flat(beta)

    def set_host_parameters(self, gamma: Array | None, beta: Array | None) -> None:
        for variable, value in ((self.layer.scale, gamma), (self.layer.bias, beta)):
            if value is not None:
                _put(variable, value)

    def memory(self) -> list[Any]:
        return [one[...] for one in self._variables()]

    def set_memory(self, memory: list[Any]) -> None:
        for variable, value in zip(self._variables(), memory, strict=True):
            variable[...] = value

    def _variables(self) -> list[Any]:
        return list(self._remembering().values())

    def decides(self, training: bool) -> tuple[bool, bool]:
        return training, training and self.momentum != 1

    def frozen(self) -> Frozen | None:
        if self.momentum == 1:
            return Frozen("momentum=1.0", "set momentum=0.99 on the module")
        return None

    def in_training(self, call: Any, args: Any, kwargs: Any) -> Any:
        return call(args[0], **{**kwargs, "use_running_average": False})

    def path(self) -> tuple[str, str | None]:
        return "flax's own operations", (
            "flax's own module does not take them; batchnorm.flax.BatchNorm does."
        )

    def why_not_freeze(self, what: str) -> str | None:
        if what == "statistics":
            return (
                f"{self.owner} must be a batchnorm.flax.BatchNorm, which has options for it; got "
                "flax's own, whose train() undoes whatever was set."
            )
        return (
            f"what must be 'statistics' for nnx modules; got {what!r}. Which parameters are "
            "trained is said to nnx.grad and nnx.Optimizer: wrt=nnx.All(nnx.Param, ...)."
        )

    def mode(self) -> Any:
        return None

    def set_mode(self, mode: Any) -> None:
        """Nothing: nothing was frozen."""

    def sizes(self) -> tuple[int, ...]:
        shape, axis = self.layer.mean[...].shape, self.layer.axis
        several = 1 if isinstance(axis, int) else len(axis)
        # nnx knows their product only
        return shape if several == len(shape) else (-1,) * (several - 1) + shape

    def trains(self) -> bool | None:
        return None  # nnx.grad and the optimizer are told

    def sentences(self) -> list[str]:
        words = [f"With use_running_average={not on} it {self.does(on)}." for on in (True, False)]
        if (moving := self.layer.use_running_average) is not None:
            words.append(f"Now that is {moving}; train(), eval() and each call may say otherwise.")
        return [*words, said_trained(self.layer.use_scale, self.layer.use_bias, True)]

    def how_to_update(self) -> str:
        return "Call model.train() before training, so that calls update them"

    def how_to_bear_small_batches(self) -> str:
        return (
            "Use larger batches, axis_name over devices, or batchnorm.flax.BatchNorm with "
            "renorm=True."
        )

    def axes(self, rank: int) -> tuple[int, ...]:
        return _axes.resolve(self.layer.axis, rank, self.owner)


class OwnNnxNorm(Own, NnxNorm):
    """A module of batchnorm.flax."""

    backend = "jax"
    takes = Own.takes | {"unbiased_moving_variance"}

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.unbiased = layer.unbiased_moving_variance
        self.cumulative = hasattr(layer, "num_updates")

    def _variables(self) -> list[Any]:
        held = [getattr(self.layer, name, None) for name in COUNTERS]
        return super()._variables() + [one for one in held if one is not None]

    def _remembering(self) -> dict[str, Any]:
        held = {
            name: one
            for name, one in sorted(vars(self.layer).items())  # nnx puts them in other orders
            if isinstance(one, nnx.BatchStat) and name not in ("mean", "var", *COUNTERS)
        }
        return super()._remembering() | held

    def updates(self) -> int | None:
        count = getattr(self.layer, "num_updates", None)
        return None if count is None else int(count[...])

    def skipped(self) -> int:
        count = getattr(self.layer, "skipped_updates", None)
        return 0 if count is None else int(count[...].max())

    def set_updates(self, count: int) -> None:
        if (variable := getattr(self.layer, "num_updates", None)) is not None:
            _put(variable, count)

    def set_option(self, name: str, value: Any) -> None:
        setattr(self.layer, name, hashable(value) if name == "renorm_clipping" else value)

    def frozen(self) -> Frozen | None:
        if self.layer.statistics == "moving" or self.layer.update_statistics is False:
            return Frozen("update_statistics=False", "batchnorm.unfreeze(model, 'statistics')")
        return super().frozen()

    def why_not_freeze(self, what: str) -> str | None:
        return None if what == "statistics" else super().why_not_freeze(what)

    def freeze(self, what: str, on: bool) -> None:
        self.set_mode(HELD if on else AUTO)

    def mode(self) -> Any:
        return self.layer.statistics, self.layer.update_statistics

    def set_mode(self, mode: Any) -> None:
        self.layer.statistics, self.layer.update_statistics = mode

    def how_to_bear_small_batches(self) -> str:
        return "Use larger batches, axis_name over devices, or renorm=True with small ones."


@contextlib.contextmanager
def put_back(model: Any) -> Iterator[Callable[[], None]]:
    """Whatever happens inside, variables and modes are what they were.

    Gives a function that puts the variables back inside already, as often as it is called.
    """
    nodes = [node for _, node in nnx.iter_graph(model)]
    held = [(one, one.get_value()) for one in nodes if isinstance(one, nnx.Variable)]
    modes = [
        (one, {name: vars(one)[name] for name in MODES if name in vars(one)})
        for one in nodes
        if isinstance(one, nnx.Module)
    ]

    def again() -> None:
        for variable, value in held:
            if variable.get_value() is not value:
                variable.set_value(value)

    try:
        yield again
    finally:
        again()
        for module, attributes in modes:
            for name, value in attributes.items():
                setattr(module, name, value)


@contextlib.contextmanager
def in_inference(model: Any, again: Callable[[], None]) -> Iterator[None]:
    """The model in inference; calls `again` at the end, whatever happens inside."""
    model.eval()
    try:
        yield
    finally:
        again()


@contextlib.contextmanager
def visited(visitors: list[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Modules whose calls go through a function; it is their class that Python asks for them."""
    functions = {id(module): function for module, function in visitors}
    classes = {type(module) for module, _ in visitors}
    own = {kind: kind.__dict__.get("__call__") for kind in classes}

    def calling(original: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            function = functions.get(id(self))
            return (function or original.__get__(self))(*args, **kwargs)

        return call

    originals = {kind: kind.__call__ for kind in classes}
    try:
        for kind, original in originals.items():
            kind.__call__ = calling(original)
        yield
    finally:
        for kind, value in own.items():
            if value is None:
                del kind.__call__
            else:
                kind.__call__ = value


def _flat(variable: Any) -> Array:
    return np.asarray(variable[...], np.float64).reshape(-1).copy()


def _put(variable: Any, value: Any) -> None:
    old = variable[...]
    variable[...] = jnp.reshape(jnp.asarray(value), old.shape).astype(old.dtype)
