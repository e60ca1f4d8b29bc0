"""`tf.compat.v1.keras.layers`: the Keras layer as TensorFlow 1 had it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from batchnorm.keras.base import BatchNormalizationBase
from batchnorm.tf1._options import moves_unbiased

v1 = tf.compat.v1


@keras.saving.register_keras_serializable(package="batchnorm", name="BatchNormalizationV1")
class BatchNormalization(BatchNormalizationBase):
    """`tf.compat.v1.keras.layers.BatchNormalization`: a Keras 3 layer with V1 semantics.

    What is different from `batchnorm.keras.BatchNormalizationBase`, which documents the arguments:

    - `trainable=False` still normalizes with the batch in training, and freezes all state.
    - `fused=True` is a wish: nothing is refused where there is no kernel.
    - `unbiased_moving_variance=None` remembers what the original did: the unbiased variance where
      it ran its fused kernel (rank 4 and 5 by default), else the biased one.
    - In a TensorFlow 1 graph, a call moves no statistics: its two update ops are in `updates`.
    - It is saved under a name of its own and loads as this class.

    Raises:
        RuntimeError: Keras computes with another framework than TensorFlow.
    """

    def __init__(self, *args: Any, unbiased_moving_variance: Any = None, **kwargs: Any) -> None:
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "batchnorm.tf1.keras: KERAS_BACKEND must be tensorflow; got "
                f"{keras.backend.backend()}. Use batchnorm.keras.BatchNormalization there."
            )
        self._rank: int | None = None
        self._masked = False
        self.updates: list[Any] = []
        super().__init__(*args, unbiased_moving_variance=unbiased_moving_variance, **kwargs)

    def _option(self, name: str) -> Any:
        value = super()._option(name)
        if name == "fused" and value is True:
            return None
        if name == "unbiased_moving_variance" and value is None:
            return self._original_was_unbiased()
        if name == "update_statistics" and value == "auto" and not self.trainable:
            return False
        return value

    def _original_was_unbiased(self) -> bool:
        return not self._masked and moves_unbiased(
            tf.TensorShape(None if self._rank is None else [None] * self._rank),
            tf.as_dtype(self.compute_dtype),
            self.axis,
            fused=self.fused,
            composed=self.renorm or self.virtual_batch_size is not None or self.adjustment,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._rank = len(input_shape)
        if not self.trainable and _in_graph():
            kept = v1.get_collection_ref(v1.GraphKeys.TRAINABLE_VARIABLES)
            own = [one.value for one in (self.gamma, self.beta) if one is not None]
            kept[:] = [one for one in kept if all(one is not other for other in own)]  # D30

    def _call(
        self,
        transform: Any,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        batch_weights: Any = None,
    ) -> Any:
        given = mask if mask is not None else getattr(inputs, "_keras_mask", None)
        self._masked = given is not None or batch_weights is not None
        return super()._call(transform, inputs, training, mask, batch_weights)

    def _training(self, training: Any) -> Any:
        return training

    def _update_from(self, names: Sequence[str]) -> dict[str, Any] | None:
        """The state after the updates of earlier calls, in a graph (D32)."""
        if not self.updates or not _in_graph() or self.updates[-1].graph is not _graph():
            return None
        with tf.control_dependencies(self.updates[-2:]):
            return {name: getattr(self, name).value.read_value() for name in names}

    def _assign(self, changed: Mapping[str, Any]) -> None:
        if not _in_graph():
            super()._assign(changed)
            return
        if not changed:
            return
        last = ("moving_mean", "moving_variance")
        rest = [name for name in changed if name not in last]
        first = [getattr(self, name).value.assign(changed[name]).op for name in rest]
        with tf.control_dependencies(first):
            self.updates += [getattr(self, name).value.assign(changed[name]).op for name in last]

    def get_updates_for(self, inputs: Any) -> list[Any]:
        """The update ops of a graph, all of which depend on the inputs."""
        return [] if inputs is None else list(self.updates)


def _in_graph() -> bool:
    return not v1.executing_eagerly_outside_functions()


def _graph() -> Any:
    return v1.get_default_graph()
