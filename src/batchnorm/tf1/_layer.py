"""`tf.compat.v1.layers.Layer`: variables, updates and losses of a layer, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.variables import PartitionedVariable  # has no public name

from batchnorm.tf1 import _tf_keras, _variables
from batchnorm.tf1._checkpoints import assign
from batchnorm.tf1._scope import LayerScope, snake_case, unique_name
from batchnorm.tf1._variables import Variable

v1 = tf.compat.v1
Tensor = Any


@dataclass(frozen=True)
class InputSpec:
    """`tf.layers.InputSpec`: what a layer takes, in `layer.input_spec`. None: anything."""

    dtype: Any = None
    shape: Sequence[int | None] | None = None
    ndim: int | None = None
    max_ndim: int | None = None
    min_ndim: int | None = None
    axes: Mapping[int, int] | None = None


class Layer(tf.Module):
    """What every layer of `tf.layers` had; `build` and `call` are the subclass's.

    Args:
        trainable: whether parameters join TRAINABLE_VARIABLES, and anything is updated.
        name: of the layer and its variable scope. Without one, the scope is named like the class,
            `tpu_batch_normalization` for TpuBatchNormalization, and numbered where that is taken.
        dtype: of the variables; that of the first inputs by default.
        reuse, scope: as in `tf.compat.v1.variable_scope`.
    """

    stateful = False

    def __init__(
        self,
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
        *,
        reuse: Any = None,
        scope: Any = None,
    ) -> None:
        # not tf.Module's constructor, which refuses names such as "block/bn"
        base = name or snake_case(type(self).__name__)
        self._name = name or unique_name(base)
        self._base = base
        self.trainable = trainable
        self.built = False
        self.input_spec: InputSpec | None = None
        self._dtype = None if dtype is None else tf.as_dtype(dtype)
        self._input_dtype = tf.float32
        self._trainable_weights: list[Variable] = []
        self._non_trainable_weights: list[Variable] = []
        self._updates: list[Any] = []
        self._losses: list[Tensor] = []
        self._scope = LayerScope(base, reuse, scope)

    # tf.Module keeps wrapped copies of lists and dictionaries
    __setattr__ = object.__setattr__

    def build(self, input_shape: Any) -> None:
        """Makes the variables for inputs of this shape; the first call does it otherwise."""
        self.built = True

    def call(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer computes, in its scope."""
        raise NotImplementedError

    def __call__(self, inputs: Any, *args: Any, scope: Any = None, **kwargs: Any) -> Tensor:
        """`call`, with the variables made and the updates in UPDATE_OPS.

        Raises:
            ValueError: under eager execution without a variable store, or the inputs are not what
                the first ones were.
        """
        inputs = tf.convert_to_tensor(inputs)
        at_once = _variables.updates_at_once(self._owner)
        with self._scope.entered(scope, built=self.built):
            if self.built:
                self._check_inputs(inputs.shape)
            else:
                self._input_dtype = inputs.dtype
                self.build(inputs.shape)
                self.built = True
            outputs = self.call(inputs, *args, **kwargs)
        if not at_once:
            _add_new(v1.GraphKeys.UPDATE_OPS, self._updates)
        return outputs

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The layer, called."""
        return self(inputs, *args, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any = None,
        initializer: Any = None,
        regularizer: Any = None,
        trainable: bool | None = None,
        constraint: Any = None,
        use_resource: bool | None = None,
        synchronization: Any = tf.VariableSynchronization.AUTO,
        aggregation: Any = tf.VariableAggregation.NONE,
        partitioner: Any = None,
        **kwargs: Any,
    ) -> Variable:
        """Gets or makes a variable in the layer's scope, and counts it among the layer's.

        Args:
            trainable: True, unless it is synchronized when it is read.

        Raises:
            TypeError: there is an unknown keyword argument.
        """
        if unknown := sorted(set(kwargs) - {"experimental_autocast"}):
            raise TypeError(
                f"{self._owner}: the keyword arguments of add_weight must be known ones; got "
                f"{unknown}."
            )
        if trainable is None:
            trainable = synchronization != tf.VariableSynchronization.ON_READ
        trained = trainable and self.trainable
        before = len(v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES))
        with self._scope.entered():
            variable = v1.get_variable(
                name,
                shape,
                tf.as_dtype(dtype or self.dtype or tf.float32),
                initializer=initializer,
                regularizer=regularizer,
                trainable=trained,
                constraint=constraint,
                use_resource=use_resource,
                synchronization=synchronization,
                aggregation=aggregation,
                partitioner=partitioner,
            )
        losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        self._keep_losses(losses[before:], conditional=False)
        parts = list(variable) if isinstance(variable, PartitionedVariable) else [variable]
        held = self._trainable_weights if trainable else self._non_trainable_weights
        held += parts
        _tf_keras.track(parts)
        return variable

    add_variable = add_weight

    def add_update(self, updates: Any, inputs: Any = None) -> None:
        """Counts ops, or functions that make them, among the updates: what UPDATE_OPS gets."""
        for update in tf.nest.flatten(updates):
            made = update() if callable(update) else update
            operation = getattr(made, "op", made)
            if operation is None or tf.executing_eagerly():
                continue
            operation._unconditional_update = False  # tf_keras asks: do they depend on inputs
            self._updates.append(operation)

    def add_loss(self, losses: Any, inputs: Any = None) -> None:
        """Counts tensors, or functions that make them, among the losses.

        They join REGULARIZATION_LOSSES too. `inputs` says what they depend on, if on anything.
        """
        made = [one() if callable(one) else one for one in tf.nest.flatten(losses)]
        made = [tf.convert_to_tensor(one) for one in made if one is not None]
        self._keep_losses(made, conditional=inputs is not None)
        if not tf.executing_eagerly():
            _add_new(v1.GraphKeys.REGULARIZATION_LOSSES, made)

    def _keep_losses(self, losses: Sequence[Tensor], *, conditional: bool) -> None:
        for one in losses:
            one._unconditional_loss = not conditional
            self._losses.append(one)

    @property
    def updates(self) -> list[Any]:
        return list(self._updates)

    @property
    def losses(self) -> list[Tensor]:
        return list(self._losses)

    def get_updates_for(self, inputs: Any) -> list[Any]:
        """The update ops, all of which depend on the inputs."""
        return [] if inputs is None else self.updates

    def get_losses_for(self, inputs: Any) -> list[Tensor]:
        """The losses that depend on the inputs; with None, those that do not."""
        return [one for one in self._losses if one._unconditional_loss is (inputs is None)]

    @property
    def trainable_variables(self) -> list[Variable]:
        return list(self._trainable_weights) if self.trainable else []

    @property
    def non_trainable_variables(self) -> list[Variable]:
        frozen = [] if self.trainable else self._trainable_weights
        return [*frozen, *self._non_trainable_weights]

    @property
    def variables(self) -> list[Variable]:
        return self.trainable_variables + self.non_trainable_variables

    trainable_weights = trainable_variables
    non_trainable_weights = non_trainable_variables
    weights = variables

    def count_params(self) -> int:
        """How many numbers the variables hold.

        Raises:
            ValueError: there are none yet.
        """
        if not self.built:
            raise ValueError(
                f"{self._owner}: count_params must come after build; got no variables. Call the "
                "layer, or build, before."
            )
        return sum(one.shape.num_elements() for one in self.weights)

    def get_weights(self) -> list[np.ndarray]:
        """The values of `weights`, in the default session.

        Raises:
            ValueError: there is no session.
        """
        if tf.executing_eagerly():
            return [one.numpy() for one in self.weights]
        values: list[np.ndarray] = self._session("get_weights").run(self.weights)
        return values

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns values to `weights`, in the default session.

        Raises:
            ValueError: there is no session, or the values are not as many or of other shapes.
        """
        own, given = (
            [tuple(one.shape.as_list()) for one in self.weights],
            list(map(np.shape, weights)),
        )
        if own != given:
            raise ValueError(
                f"{self._owner}: weights must have the shapes {own}; got {given}. Give the values "
                "in the order of layer.weights."
            )
        for variable, value in zip(self.weights, weights, strict=True):
            if tf.executing_eagerly():
                variable.assign(value)
            else:
                assign(self._session("set_weights"), variable, value)

    def _session(self, method: str) -> Any:
        session = v1.get_default_session()
        if session is None:
            raise ValueError(
                f"{self._owner}: {method} must be called in a session; got no default session. "
                "Write `with session.as_default():` around it."
            )
        return session

    def get_config(self) -> dict[str, Any]:
        """The name, `trainable` and the type; a subclass adds what its constructor takes."""
        dtype = None if self.dtype is None else self.dtype.name
        return {"name": self.name, "trainable": self.trainable, "dtype": dtype}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """A layer like the one that the configuration was taken from."""
        return cls(**config)

    def _check_inputs(self, shape: tf.TensorShape) -> None:
        spec = self.input_spec
        if spec is None or spec.ndim is None:
            return
        expected = [(spec.axes or {}).get(i) for i in range(spec.ndim)]
        if not tf.TensorShape(expected).is_compatible_with(shape):
            raise ValueError(
                f"{self._owner}: inputs must have the shape {tuple(expected)}, as in the first "
                f"call; got {tuple(shape.as_list())}. Make another layer."
            )

    @property
    def name(self) -> str:
        """The name that was given, or one that is unique in the graph."""
        return self._name

    @property
    def scope_name(self) -> str:
        """The name of the variable scope, which the first call opens."""
        if self._scope.name is None:
            raise ValueError(
                f"{self._owner}: scope_name must be read after the first call; got none before it."
            )
        return self._scope.name

    @property
    def _owner(self) -> str:
        return f"{type(self).__name__} {self._scope.name or self._base!r}"

    @property
    def dtype(self) -> Any:
        """The type of the variables; None before there are any."""
        made = self.weights
        return self._dtype or (made[0].dtype.base_dtype if made else None)

    @property
    def _self_tracked_trackables(self) -> list[Any]:
        return _tf_keras.stand_ins(self)


def _add_new(collection: str, elements: Sequence[Any]) -> None:
    """Adds to a collection what is not in it."""
    there = {id(one) for one in v1.get_collection(collection)}
    for one in elements:
        if id(one) not in there:
            v1.add_to_collection(collection, one)
