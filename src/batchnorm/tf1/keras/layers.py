"""`tf.compat.v1.keras.layers`: the Keras layer as TensorFlow 1 had it, on every Keras backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope  # no public name (3.15)

from batchnorm.keras.base import BatchNormalizationBase
from batchnorm.tf1._originals import takes_fused
from batchnorm.tf1._overrides import REFUSED, check

_MOMENTS = ("_moments", "_calculate_mean_and_var", "_fused_can_be_used", "_get_training_value")
_INSTEAD = (
    "Override call or build, or derive from batchnorm.tf1.layers.BatchNormalization, which calls "
    "_moments."
)


@keras.saving.register_keras_serializable(package="batchnorm", name="BatchNormalizationV1")
class BatchNormalization(BatchNormalizationBase):
    """`tf.compat.v1.keras.layers.BatchNormalization`: a Keras 3 layer with V1 semantics.

    What is different from `batchnorm.keras.BatchNormalizationBase`, which documents the arguments:

    - `trainable=False` still normalizes with the batch in training, and freezes all state.
    - `fused=True` is a wish: nothing is refused where there is no kernel.
    - `unbiased_moving_variance=None` remembers what the original did: the unbiased variance where
      it ran its fused kernel (rank 4 and 5 by default), else the biased one.
    - In a TensorFlow 1 graph, and in `tf.compat.v1.wrap_function`, a call moves no statistics: its
      two update ops are in `updates`.
    - It is saved under a name of its own and loads as this class.

    Raises:
        TypeError: where a subclass is defined, it overrides what nothing here calls.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        here = {name for name in REFUSED if hasattr(BatchNormalizationBase, name)}
        check(cls, dict.fromkeys({*REFUSED, *_MOMENTS} - here, _INSTEAD))

    def __init__(self, *args: Any, unbiased_moving_variance: Any = None, **kwargs: Any) -> None:
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
        composed = self.renorm or self.virtual_batch_size is not None or self.adjustment
        plain = self.fused is not False and not self._masked
        return plain and takes_fused(self._rank, self.compute_dtype, self.axis, composed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._rank = len(input_shape)
        graph = _graph()
        if not self.trainable and graph is not None:
            kept = graph.get_collection_ref("trainable_variables")
            own = [one.value for one in (self.gamma, self.beta) if one is not None]
            kept[:] = [one for one in kept if all(one is not other for other in own)]  # D30

    def _call(
        self,
        transform: Any,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        batch_weights: Any = None,
        residual: Any = None,
    ) -> Any:
        given = mask if mask is not None else getattr(inputs, "_keras_mask", None)
        self._masked = given is not None or batch_weights is not None
        return super()._call(transform, inputs, training, mask, batch_weights, residual)

    def _training(self, training: Any) -> Any:
        return training

    def _update_from(self, names: Sequence[str]) -> dict[str, Any] | None:
        """The state after the updates of earlier calls, in a graph (D32)."""
        graph = _graph()
        if not self.updates or graph is None or self.updates[-1].graph is not graph:
            return None
        with graph.control_dependencies(self.updates[-2:]):
            return {name: getattr(self, name).value.read_value() for name in names}

    def _assign(self, changed: Mapping[str, Any]) -> None:
        graph = _graph()
        if graph is None:
            super()._assign(changed)
            return
        if not changed:
            return
        last = ("moving_mean", "moving_variance")
        rest = [name for name in changed if name not in last]
        first = [getattr(self, name).value.assign(changed[name]).op for name in rest]
        with graph.control_dependencies(first):
            self.updates += [getattr(self, name).value.assign(changed[name]).op for name in last]

    def get_updates_for(self, inputs: Any) -> list[Any]:
        """The update ops of a graph, all of which depend on the inputs."""
        return [] if inputs is None else list(self.updates)


def _graph() -> Any:
    """The TensorFlow graph whose update ops somebody has to run; None where assignments just run.

    That is under eager execution, in tf.function, and where Keras keeps what is assigned.
    """
    if keras.backend.backend() != "tensorflow" or in_stateless_scope():
        return None
    import tensorflow as tf

    graph = tf.compat.v1.get_default_graph()
    # tf.function orders its side effects; wrap_function, a graph for TensorFlow 1 code, does not
    ordered = getattr(graph, "_add_control_dependencies", False)
    return None if tf.executing_eagerly() or ordered else graph
