"""Keras layers under the names of `Norm`: Keras' own, and ours. Imported once Keras is."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from batchnorm import _axes
from batchnorm._moments import Moments
from batchnorm.backends import why_not
from batchnorm.tools.norm import Array, Norm

SETTLED = 1e-8  # what may be left of a zero-debiased average's start
_CONSTANTS = {"Zeros": 0.0, "Ones": 1.0}


class KerasNorm(Norm):
    """Keras' own layer, on any backend."""

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.kind = "keras"
        self.momentum = _number(layer.momentum)
        self.epsilon = float(layer.epsilon)
        mean, variance = layer.moving_mean_initializer, layer.moving_variance_initializer
        start = (_CONSTANTS.get(type(mean).__name__), _CONSTANTS.get(type(variance).__name__))
        self.initial = None if start[0] is None or start[1] is None else (start[0], start[1])

    def statistics(self) -> tuple[Array, Array]:
        return _flat(self.layer.moving_mean), _flat(self.layer.moving_variance)

    def parameters(self) -> tuple[Array | None, Array | None]:
        gamma, beta = self.layer.gamma, self.layer.beta
        return None if gamma is None else _flat(gamma), None if beta is None else _flat(beta)

    def remembered(self) -> dict[str, Array]:
        shape = self.layer.moving_mean.shape
        return {one.name: _flat(one) for one in self._memory() if one.shape == shape}

    def assign(self, mean: Array, variance: Array, which: Array | None = None) -> None:
        for name, value in self._agreeing(mean, variance).items():
            variable = getattr(self.layer, name)
            kept = value if which is None else np.where(which, value, _flat(variable))
            variable.assign(kept.reshape(variable.shape).astype(variable.dtype))

    def _agreeing(self, mean: Array, variance: Array) -> dict[str, Array]:
        """Values of all variables that agree with these moving statistics."""
        values = {"moving_mean": mean, "moving_variance": variance}
        if self.layer.renorm:
            deviation = np.sqrt(variance + self.epsilon)
            values |= {
                "moving_stddev": deviation,
                "renorm_mean": mean,
                "renorm_stddev": deviation,
            }
        return values

    def place(self, mean: Any, variance: Any) -> None:
        ops = keras.ops
        for variable, value in (
            (self.layer.moving_mean, mean),
            (self.layer.moving_variance, variance),
        ):
            variable.assign(ops.reshape(value, variable.shape))

    def held(self, dtype: str) -> tuple[Any, Any]:
        ops = keras.ops
        pair = (self.layer.moving_mean, self.layer.moving_variance)
        return tuple(ops.reshape(ops.cast(one, dtype), (1, -1)) for one in pair)

    def state(self) -> list[Any]:
        return [keras.ops.copy(variable.value) for variable in self._memory()]

    def restore(self, state: list[Any]) -> None:
        for variable, value in zip(self._memory(), state, strict=True):
            variable.assign(value)

    def _memory(self) -> list[Any]:
        """Every variable that is no parameter, whatever is trainable."""
        parameters = {id(self.layer.gamma), id(self.layer.beta)}
        return [one for one in self.layer.variables if id(one) not in parameters]

    def frozen(self) -> str | None:
        if not self.layer.trainable:
            return "trainable=False"
        return "momentum=1" if self.momentum == 1 else None

    def uses_batch(self) -> bool:
        return bool(self.layer.trainable)

    def renorm(self) -> bool:
        return bool(self.layer.renorm)

    def own_training(self) -> bool:
        return self.renorm()

    def path(self) -> tuple[str, str | None]:
        return f"Keras' own operations ({keras.backend.backend()})", (
            "Keras' own layer does not take them; batchnorm.keras.BatchNormalization does."
        )

    def axes(self, rank: int) -> tuple[int, ...]:
        return _axes.resolve(self.layer.axis, rank, self.owner)

    def measured(self, x: Any, mask: Any, batch_weights: Any) -> Moments:
        return super().measured(keras.ops.cast(x, self.layer.compute_dtype), mask, batch_weights)


class OwnNorm(KerasNorm):
    """Our Keras layer."""

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(layer, name)
        self.kind = "batchnorm"
        self.unbiased = layer.unbiased_moving_variance

    def _agreeing(self, mean: Array, variance: Array) -> dict[str, Array]:
        values = super()._agreeing(mean, variance)
        if self.layer.zero_debias:
            # as after so many updates that nothing of the start is left
            momentum = self.momentum if self.momentum is not None else 0.0
            steps = 1 if momentum in (0, 1) else math.ceil(math.log(SETTLED) / math.log(momentum))
            values |= {"biased_mean": mean, "local_step": np.full(mean.shape, float(steps))}
        if self.layer.zero_debias == "both":
            name = "stddev" if self.layer.renorm else "variance"
            values[f"biased_{name}"] = values[f"moving_{name}"]
        return values

    def updates(self) -> int | None:
        return int(_array(self.layer.num_updates))

    def skipped(self) -> int:
        return int(_array(self.layer.skipped_updates).max(initial=0))

    def frozen(self) -> str | None:
        layer = self.layer
        if layer.update_statistics is False:
            return "update_statistics=False"
        if layer.update_statistics is True:
            return None
        if layer.statistics == "moving":
            return "statistics='moving'" if not layer.trainable else None
        return super().frozen()

    def uses_batch(self) -> bool:
        if self.layer.statistics == "auto":
            return bool(self.layer.trainable)
        return self.layer.statistics == "batch"

    def group_size(self) -> int | None:
        return self.layer.virtual_batch_size

    def own_training(self) -> bool:
        layer = self.layer
        return layer.renorm or layer.adjustment is not None or layer.virtual_batch_size is not None

    def path(self) -> tuple[str, str | None]:
        reason = "fused is False." if self.layer.fused is False else None
        reason = reason or why_not(keras.backend.backend())
        return "composite operations" if reason else "fused kernels", reason


def _array(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _flat(variable: Any) -> Array:
    return _array(variable).astype(np.float64).reshape(-1)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except TypeError:  # a schedule, or a tensor that is only known in a graph
        return None
