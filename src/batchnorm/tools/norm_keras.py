"""Keras layers under the names of `Norm`: Keras' own, and ours. Imported once Keras is."""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from batchnorm import _axes
from batchnorm._moments import Moments
from batchnorm._plan import Plan
from batchnorm.tools.norm import AUTO, HELD, Array, Frozen, Norm, Stance, said_trained
from batchnorm.tools.norm_own import Own

_CONSTANTS = {"Zeros": 0.0, "Ones": 1.0}
_OF_RENORM = ("renorm", "renorm_clipping", "renorm_momentum")
_UNFREEZE = "batchnorm.unfreeze(model)"


def norm_of(layer: Any, name: str) -> Norm:
    """The layer as what it is: ours, or Keras' own."""
    ours = sys.modules.get("batchnorm.keras.base")
    own = ours is not None and isinstance(layer, ours.BatchNormalizationBase)
    return OwnNorm(layer, name) if own else KerasNorm(layer, name)


class KerasNorm(Norm):
    """Keras' own layer, on any backend."""

    framework = "Keras"
    takes = Norm.takes | set(_OF_RENORM)

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.momentum = _number(layer.momentum)
        self.epsilon = float(layer.epsilon)
        mean, variance = layer.moving_mean_initializer, layer.moving_variance_initializer
        start = (_CONSTANTS.get(type(mean).__name__), _CONSTANTS.get(type(variance).__name__))
        self.initial = None if start[0] is None or start[1] is None else (start[0], start[1])

    def host_statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.moving_mean), _flat(self.layer.moving_variance)

    def put(self, values: dict[str, Array], which: Array | None = None) -> None:
        for name, value in values.items():
            variable = getattr(self.layer, name)
            kept = value if which is None else np.where(which, value, _flat(variable))
            variable.assign(kept.reshape(variable.shape).astype(variable.dtype))

    def device_statistics(self, dtype: str) -> tuple[Any, Any]:
        ops = keras.ops
        pair = (self.layer.moving_mean, self.layer.moving_variance)
        return tuple(ops.reshape(ops.cast(one, dtype), (1, -1)) for one in pair)

    def set_device_statistics(self, mean: Any, variance: Any) -> None:
        ops = keras.ops
        for variable, value in (
            (self.layer.moving_mean, mean),
            (self.layer.moving_variance, variance),
        ):
            variable.assign(ops.reshape(value, variable.shape))

    def host_parameters(self) -> tuple[Array | None, Array | None]:
        gamma, beta = self.layer.gamma, self.layer.beta
        return None if gamma is None else _flat(gamma), None if beta is None else _flat(beta)

    def set_host_parameters(self, gamma: Array | None, beta: Array | None) -> None:
        for variable, value in ((self.layer.gamma, gamma), (self.layer.beta, beta)):
            if value is not None:
                variable.assign(value.reshape(variable.shape).astype(variable.dtype))

    def host_memory(self) -> dict[str, Array]:
        shape = self.layer.moving_mean.shape
        return {one.name: _flat(one) for one in self._remembering() if one.shape == shape}

    def memory(self) -> list[Any]:
        return [keras.ops.copy(variable.value) for variable in self._remembering()]

    def set_memory(self, memory: list[Any]) -> None:
        for variable, value in zip(self._remembering(), memory, strict=True):
            variable.assign(value)

    def _remembering(self) -> list[Any]:
        """Every variable that is no parameter, whatever is trainable."""
        parameters = {id(self.layer.gamma), id(self.layer.beta)}
        return [one for one in self.layer.variables if id(one) not in parameters]

    def decides(self, training: bool) -> tuple[bool, bool]:
        live = training and bool(self.layer.trainable)
        return live, live and self.momentum != 1

    def renorm(self) -> bool:
        return bool(getattr(self.layer, "renorm", False))  # Keras has it since 3.14

    def own_training(self) -> bool:
        return self.renorm()

    def in_training(self, call: Any, args: Any, kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": True})

    def frozen(self) -> Frozen | None:
        if self.decides(True)[1]:
            return None
        if self.momentum == 1:
            return Frozen("momentum=1", "set momentum=0.9 on the layer")
        return Frozen("trainable=False", _UNFREEZE)

    def path(self) -> tuple[str, str | None]:
        return f"Keras' own operations ({keras.backend.backend()})", (
            "Keras' own layer does not take them; batchnorm.keras.BatchNormalization does."
        )

    def why_not_freeze(self, what: str) -> str | None:
        if what == "both":
            return None
        return (
            f"what must be 'both' for Keras' own layer, whose `trainable` is one switch; got "
            f"{what!r} for {self.name!r}. Use batchnorm.keras.BatchNormalization to choose."
        )

    def freeze(self, what: str, on: bool) -> None:
        self.layer.trainable = not on

    def mode(self) -> Any:
        return self.layer.trainable

    def set_mode(self, mode: Any) -> None:
        self.layer.trainable = mode

    def options(self) -> dict[str, Any]:
        names = ("momentum", *(name for name in _OF_RENORM if hasattr(self.layer, name)))
        return super().options() | {name: getattr(self.layer, name) for name in names}

    def stance(self) -> Stance:
        return AUTO if self.layer.trainable else HELD

    def take_stance(self, stance: Stance) -> None:
        self.layer.trainable = stance == AUTO

    def trains(self) -> bool | None:
        return bool(self.layer.trainable)

    def sizes(self) -> tuple[int, ...]:
        shape = self.layer.moving_mean.shape
        if len(shape) == 1:
            return tuple(shape)
        return tuple(shape[axis] for axis in sorted(self.axes(len(shape))))

    def sentences(self) -> list[str]:
        cases = [self.does(training) for training in (True, False)]
        causes = self._causes()
        because = f", because {', '.join(causes)}" if causes else ""
        if cases[0] == cases[1]:
            words = f"With training=True and False alike it {cases[0]}{because}."
        else:
            words = f"With training=True it {cases[0]}; with training=False it {cases[1]}{because}."
        return [words, said_trained(self.layer.scale, self.layer.center, bool(self.trains()))]

    def said_share(self) -> str:
        share = self.momentum
        return "" if share is None else f" (keeping {self.said_momentum(share)} of the old)"

    def _causes(self) -> list[str]:
        """What is not as usual and decides."""
        causes = [] if self.layer.trainable else ["trainable=False"]
        return [*causes, "momentum=1"] if self.momentum == 1 else causes

    def how_to_update(self) -> str:
        return (
            "Call the model with training=True in training, and keep the state that it returns "
            "(in JAX, the non-trainable variables)"
        )

    def how_to_bear_small_batches(self) -> str:
        return (
            "Use larger batches, synchronized=True over replicas, or renorm=True with small ones."
        )

    def axes(self, rank: int) -> tuple[int, ...]:
        return _axes.resolve(self.layer.axis, rank, self.owner)

    def measured(self, x: Any, mask: Any, batch_weights: Any) -> Moments:
        return super().measured(keras.ops.cast(x, self.layer.compute_dtype), mask, batch_weights)


class OwnNorm(Own, KerasNorm):
    """Our Keras layer, V1's too."""

    cumulative = True
    takes = Own.takes | {"unbiased_moving_variance"}

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.unbiased = self._options.unbiased_moving_variance

    @property
    def _options(self) -> Any:
        return self.layer._options()  # as the layer itself reads them: V1 has its own view

    def updates(self) -> int | None:
        return int(_array(self.layer.num_updates))

    def skipped(self) -> int:
        return int(_array(self.layer.skipped_updates).max(initial=0))

    @property
    def backend(self) -> str:
        name: str = keras.backend.backend()
        return name

    def switches(self) -> Stance:
        return self._options.statistics, self._options.update_statistics

    def live(self, training: bool) -> bool:
        return bool(self.layer._training(training))

    def take_stance(self, stance: Stance) -> None:
        self.layer.trainable = True  # what is trained is said by train_parameters
        super().take_stance(stance)

    def options(self) -> dict[str, Any]:
        known = {keras.activations.linear: None, keras.activations.relu: "relu"}
        activation = self.layer.activation
        return super().options() | {"activation": known.get(activation, activation)}

    def set_option(self, name: str, value: Any) -> None:
        setattr(self.layer, name, keras.activations.get(value) if name == "activation" else value)

    def set_updates(self, count: int) -> None:
        self.layer.num_updates.assign(count)

    def last_plan(self) -> Plan | None:
        return next(reversed(self._options.plans.values()), None)

    def frozen(self) -> Frozen | None:
        if self.decides(True)[1]:
            return None
        if self.layer.update_statistics is False:
            return Frozen("update_statistics=False", _UNFREEZE)
        if not self.layer.trainable:
            return Frozen("trainable=False", "set trainable=True on the layer")
        return super().frozen()

    def why_not_freeze(self, what: str) -> str | None:
        return None

    def freeze(self, what: str, on: bool) -> None:
        if what != "parameters":
            self.layer.statistics = "moving" if on else "auto"
            self.layer.update_statistics = False if on else "auto"
        if what != "statistics":
            self.layer.train_parameters = not on

    def mode(self) -> Any:
        layer = self.layer
        return layer.statistics, layer.update_statistics, layer.train_parameters

    def set_mode(self, mode: Any) -> None:
        self.layer.statistics, self.layer.update_statistics, self.layer.train_parameters = mode

    def _causes(self) -> list[str]:
        own = ("statistics", "update_statistics")
        given = [f"{name}={getattr(self.layer, name)!r}" for name in own]
        given = [words for words in given if not words.endswith("'auto'")]
        frozen = [] if self.layer.trainable else ["trainable=False"]
        return [*frozen, *given, *(["momentum=1"] if self.momentum == 1 else [])]

    def trains(self) -> bool | None:
        return bool(self.layer.trainable and self.layer.train_parameters)


def _array(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _flat(variable: Any) -> Array:
    return _array(variable).astype(np.float64).reshape(-1)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except TypeError:  # a schedule, or a tensor that is only known in a graph
        return None
