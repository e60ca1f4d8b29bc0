"""Averaged weights with statistics of their own: a Keras callback."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from batchnorm.tools.norms import find
from batchnorm.tools.reestimation import reestimate

AVERAGES = (None, "swa", "ema")


class WeightAveraging(keras.callbacks.Callback):
    """Evaluates and ends with averaged weights, whose moving statistics are re-estimated.

    The moving statistics that training left belong to the weights of training: averaged weights
    need statistics of their own. Each evaluation in `fit` runs with the averages and re-estimated
    statistics, then training goes on with its own. At the end of training they stay.

    Averages:
        swa: the mean of the weights at the end of each epoch, from `start` on.
        ema: the same with weights that fall by `decay` from epoch to epoch.
        None: the weights as they are: re-estimates only. For averages that another callback puts
            in place, such as `keras.callbacks.SwapEMAWeights`; list it before this one.

    Args:
        data: what to re-estimate from; readable more than once.
        average, start, decay: as above; start counts epochs from 0.
        options: further arguments of `batchnorm.reestimate`.

    Raises:
        ValueError: an argument is not what it must be.

    Reference: Izmailov et al. 2018, "Averaging weights leads to wider optima", algorithm 1.
    """

    def __init__(
        self,
        data: Any,
        average: str | None = "swa",
        start: int = 0,
        decay: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__()
        if average not in AVERAGES:
            raise ValueError(
                f"WeightAveraging: average must be one of 'swa', 'ema', None; got {average!r}."
            )
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAveraging: decay must be in [0, 1); got {decay}.")
        self._data, self._average, self._start, self._decay = data, average, start, decay
        self._options = options
        self._averages: list[np.ndarray] = []
        self._weight = 0.0
        self._training: tuple[list[np.ndarray], list[Any]] | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the epoch's weights into the average."""
        if self._average is None or epoch < self._start:
            return
        self._weight = self._weight * (self._decay if self._average == "ema" else 1) + 1
        share = 1 / self._weight
        values = [_array(one) for one in self.model.trainable_variables]
        if not self._averages:
            self._averages = values
            return
        for old, new in zip(self._averages, values, strict=True):
            old += share * (new - old)

    def on_test_begin(self, logs: Any = None) -> None:
        """Puts averages and their statistics in place."""
        states = [norm.state() for norm in find(self.model, "WeightAveraging")]
        self._training = ([_array(one) for one in self.model.trainable_variables], states)
        self._put()

    def on_test_end(self, logs: Any = None) -> None:
        """Gives training its weights and statistics back."""
        if self._training is None:
            return
        values, states = self._training
        for norm, state in zip(find(self.model, "WeightAveraging"), states, strict=True):
            norm.restore(state)
        self._assign(values)
        self._training = None

    def on_train_end(self, logs: Any = None) -> None:
        self._put()

    def _put(self) -> None:
        self._assign(self._averages)
        reestimate(self.model, self._data, **self._options)

    def _assign(self, values: list[np.ndarray]) -> None:
        if values:
            for variable, value in zip(self.model.trainable_variables, values, strict=True):
                variable.assign(value.astype(variable.dtype))


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable.value), np.float64)
