"""Training one row of the table: compiled once, run once for each seed."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import keras
import numpy as np

from batchnorm.demo.data import Digits, batches
from batchnorm.demo.network import network
from batchnorm.demo.plan import Regime

TARGET = 0.95

OnEvaluation = Callable[[int, float], None]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        accuracies: Test accuracy after every `regime.every` steps.
        milliseconds: The time of a step, in each of these stretches.
        fitted: Accuracy on the batches of the last stretch, normalized as in training.
    """

    regime: Regime
    kind: str
    seed: int
    accuracies: tuple[float, ...]
    milliseconds: tuple[float, ...]
    fitted: float

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last step."""
        return self.accuracies[-1]

    @property
    def steps_to_target(self) -> int | None:
        """Steps until the first evaluation that reached the target; None if none did."""
        for evaluation, accuracy in enumerate(self.accuracies, start=1):
            if accuracy >= TARGET:
                return evaluation * self.regime.every
        return None


class Trainer:
    """Trains one kind of normalization in one regime; compiles at its first run only."""

    def __init__(self, digits: Digits, regime: Regime, kind: str, widths: tuple[int, ...]) -> None:
        self.digits = digits
        self.regime = regime
        self.kind = kind
        self.widths = widths
        self.model = network(kind, regime, widths)
        # Falling to zero, so that the last accuracy is not an accident of the last batches.
        rate = keras.optimizers.schedules.PolynomialDecay(regime.learning_rate, regime.steps, 0.0)
        self.optimizer = keras.optimizers.SGD(
            rate,
            momentum=0.9,
            gradient_accumulation_steps=regime.accumulate if regime.accumulate > 1 else None,
        )
        self.optimizer.build(self.model.trainable_variables)
        self.optimizer_start = [to_numpy(variable) for variable in self.optimizer.variables]
        self.model.compile(
            self.optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )

    def run(self, seed: int, on_evaluation: OnEvaluation) -> Run:
        """Train from the start that `seed` gives; call `on_evaluation(steps, accuracy)`."""
        self._restart(seed)
        regime, digits = self.regime, self.digits
        watch = _Watch(regime.every, on_evaluation)
        history = self.model.fit(
            batches(digits, regime.batch, regime.classes, seed),
            steps_per_epoch=regime.every,
            epochs=regime.steps // regime.every,
            validation_data=(digits.test_images, digits.test_labels),
            validation_batch_size=len(digits.test_labels),
            shuffle=False,
            verbose=0,
            callbacks=[watch],
        )
        # The first stretch holds compilation, or at least the start of the input pipeline.
        return Run(
            regime,
            self.kind,
            seed,
            accuracies=tuple(history.history["val_accuracy"]),
            milliseconds=tuple(watch.milliseconds[1:]),
            fitted=history.history["accuracy"][-1],
        )

    def _restart(self, seed: int) -> None:
        """Give model and optimizer the values of a new start, and keep what was compiled."""
        keras.utils.set_random_seed(seed)
        fresh = network(self.kind, self.regime, self.widths)
        self.model.set_weights(fresh.get_weights())
        for variable, start in zip(self.optimizer.variables, self.optimizer_start, strict=True):
            variable.assign(start)


class _Watch(keras.callbacks.Callback):
    """Times the steps between evaluations, and reports each evaluation."""

    def __init__(self, every: int, on_evaluation: OnEvaluation) -> None:
        super().__init__()
        self.every = every
        self.on_evaluation = on_evaluation
        self.milliseconds: list[float] = []
        self.started = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.started = perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict) -> None:
        if batch == self.every - 1:
            # Reading the loss waits for steps that the framework still has under way.
            to_numpy(logs["loss"])
            self.milliseconds.append((perf_counter() - self.started) / self.every * 1e3)

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        self.on_evaluation((epoch + 1) * self.every, logs["val_accuracy"])


def to_numpy(value: object) -> np.ndarray:
    """NumPy copy of a tensor, variable or number of Keras' backend."""
    return np.array(keras.ops.convert_to_numpy(value))
