"""Averaged weights with statistics of their own: a Keras callback."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from batchnorm.tools.data import check_again
from batchnorm.tools.norms import find
from batchnorm.tools.reestimation import reestimate

AVERAGES = (None, "swa", "ema")


class WeightAveraging(keras.callbacks.Callback):
    """Evaluates and ends with averaged weights, whose moving statistics are re-estimated.

    The moving statistics that training left belong to the weights of training: averaged weights
    need statistics of their own. Each evaluation in `fit` runs with the averages, those of the
    epoch before it included, and with re-estimated statistics; then training goes on with its own,
    also where the evaluation is interrupted. At the end of training the averages stay. Each `fit`
    has averages of its own.

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
        TypeError, ValueError: an argument is not what it must be.

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
        check_again(data, "WeightAveraging")
        self._data, self._average, self._start, self._decay = data, average, start, decay
        self._options = options
        self._averages: list[np.ndarray] = []
        self._weight = 0.0
        self._due: int | None = None  # the epoch that is not in the average yet
        self._training: tuple[list[np.ndarray], list[Any]] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts averages anew, and guards the evaluations of this `fit`."""
        self._averages, self._weight, self._due = [], 0.0, None
        model: Any = self.model
        evaluate = type(model).evaluate

        def guarded(*args: Any, **kwargs: Any) -> Any:
            # Keras calls no callback when an evaluation is interrupted
            try:
                return evaluate(model, *args, **kwargs)
            except BaseException:
                if keras.backend.backend() == "jax":
                    model.jax_state_sync()  # `fit` does so, too late: what it holds is averages
                self.on_test_end()
                model.__dict__.pop("evaluate", None)
                raise

        model.__dict__["evaluate"] = guarded  # Keras would track it if it were assigned

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._due = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the epoch's weights into the average, where its evaluation has not."""
        self._take()

    def on_test_begin(self, logs: Any = None) -> None:
        """Puts averages and their statistics in place."""
        self._take()
        self._put()

    def on_test_end(self, logs: Any = None) -> None:
        """Gives training its weights and statistics back."""
        if self._training is None:
            return
        values, states = self._training
        for norm, state in zip(find(self.model, "WeightAveraging"), states, strict=True):
            norm.set_memory(state)
        self._assign(values)
        self._training = None

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the averages and their statistics in the model."""
        self.model.__dict__.pop("evaluate", None)
        self._put()
        self._training = None

    def _take(self) -> None:
        epoch, self._due = self._due, None
        if epoch is None or self._average is None or epoch < self._start:
            return
        self._weight = self._weight * (self._decay if self._average == "ema" else 1) + 1
        share = 1 / self._weight
        values = self._values()
        if not self._averages:
            self._averages = values
            return
        for old, new in zip(self._averages, values, strict=True):
            old += share * (new - old)

    def _put(self) -> None:
        """The averages and their statistics; if anything is raised, the model is as it was."""
        states = [norm.memory() for norm in find(self.model, "WeightAveraging")]
        self._training = (self._values() if self._averages else [], states)
        try:
            self._assign(self._averages)
            reestimate(self.model, self._data, **self._options)
        except BaseException:
            self.on_test_end()
            raise

    def _values(self) -> list[np.ndarray]:
        return [_array(one) for one in self.model.trainable_variables]

    def _assign(self, values: list[np.ndarray]) -> None:
        if values:
            for variable, value in zip(self.model.trainable_variables, values, strict=True):
                variable.assign(value.astype(variable.dtype))


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable.value), np.float64)
