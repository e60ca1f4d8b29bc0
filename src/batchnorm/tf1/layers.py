"""`tf.compat.v1.layers`: batch normalization in graphs and sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from batchnorm._arguments import resolve_training
from batchnorm._options import Options
from batchnorm.backends import tensorflow as backend
from batchnorm.tf1 import _keras_names, _variables
from batchnorm.tf1._application import apply
from batchnorm.tf1._naming import layer_output
from batchnorm.tf1._options import checked, moves_unbiased
from batchnorm.tf1._scope import LayerScope
from batchnorm.tf1._variables import Parameter, Vectors

v1 = tf.compat.v1
_KEYWORDS = {"dtype", "_reuse", "_scope"}
_ZEROS, _ONES = v1.zeros_initializer(), v1.ones_initializer()
_KINDS = ("initializer", "regularizer", "constraint")


class BatchNormalization:
    """`tf.compat.v1.layers.BatchNormalization`, on today's TensorFlow.

    Called as `layer(inputs, training=False, mask=None)` while a graph is built. The first call
    makes the variables, in the variable scope that `name` opens; later calls share them. In a graph
    the updates of the moving statistics are in the collection UPDATE_OPS, two for each call, and
    move nothing unless they are run. Inside `track_tf1_style_variables` they run at once.

    Formulas and edge cases are at `batchnorm.batch_norm`. `trainable=False` normalizes with the
    batch in training and updates nothing. The moving variance is unbiased (N - 1) where the
    original ran its fused kernel, which is rank 4 and 5 by default, else biased.

    Shapes: gamma, beta and the state: `(C,)` for one axis; for several, rank(inputs) with 1 off the
    axes; with ghost batches the latter, and another 1 at position 1.

    Types: inputs of float16, bfloat16, float32 or float64, and the output has their type. Variables
    are float32, or float64 for float64 inputs.

    Args:
        axis, momentum, epsilon, center, scale, renorm, renorm_clipping, renorm_momentum,
            virtual_batch_size, adjustment: see `batchnorm.batch_norm`. Momenta and clipping values
            may be tensors and placeholders.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer:
            functions of (shape, dtype), or Keras names. None: the initializer of the scope.
        beta_regularizer, gamma_regularizer: functions whose result joins REGULARIZATION_LOSSES.
        beta_constraint, gamma_constraint: functions that an optimizer applies to the variable.
        fused: None and True take the fastest path, False only TensorFlow's own ops.
        trainable: whether gamma and beta join TRAINABLE_VARIABLES, and anything is updated.
        name: of the layer and its variable scope.
        dtype: of the variables, in place of the inputs'.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        ValueError: at a call, under eager execution without a variable store.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: Any = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = _ZEROS,
        gamma_initializer: Any = _ONES,
        moving_mean_initializer: Any = _ZEROS,
        moving_variance_initializer: Any = _ONES,
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, Any] | None = None,
        renorm_momentum: Any = 0.99,
        fused: bool | None = None,
        trainable: bool = True,
        virtual_batch_size: int | None = None,
        adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(set(kwargs) - _KEYWORDS):
            raise TypeError(
                f"BatchNormalization: the keyword arguments must be known ones; got {unknown}."
            )
        self.name = name or "batch_normalization"
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = _keras_names.initializer(beta_initializer)
        self.gamma_initializer = _keras_names.initializer(gamma_initializer)
        self.moving_mean_initializer = _keras_names.initializer(moving_mean_initializer)
        self.moving_variance_initializer = _keras_names.initializer(moving_variance_initializer)
        self.beta_regularizer = _keras_names.regularizer(beta_regularizer)
        self.gamma_regularizer = _keras_names.regularizer(gamma_regularizer)
        self.beta_constraint = _keras_names.constraint(beta_constraint)
        self.gamma_constraint = _keras_names.constraint(gamma_constraint)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.fused = fused
        self.trainable = trainable
        self.virtual_batch_size = virtual_batch_size
        self.adjustment = adjustment
        self.built = False
        self.updates: list[Any] = []
        self.losses: list[Any] = []
        self._dtype = None if kwargs.get("dtype") is None else tf.as_dtype(kwargs["dtype"])
        self._hold(Vectors())
        self._shape = tf.TensorShape(None)
        self._options(tf.TensorShape(None), tf.float32, masked=False)  # checks them
        self._scope = LayerScope(self.name, kwargs.get("_reuse"), kwargs.get("_scope"))

    def __call__(
        self, inputs: Any, training: Any = False, mask: Any = None, *, scope: Any = None
    ) -> Any:
        """Inputs, normalized, with their shape and type."""
        inputs = tf.convert_to_tensor(inputs)
        at_once = _variables.updates_at_once(self._owner)
        with self._scope.entered(scope, built=self.built):
            options = self._options(inputs.shape, inputs.dtype, masked=mask is not None)
            axes = _variables.known_axes(options, inputs.shape)
            training = resolve_training(backend, training, options.owner)
            if self.built:
                self._check_shape(axes, inputs.shape)
            else:
                self._build(options, axes, inputs.shape, inputs.dtype)
            applied = apply(options, inputs, self._vectors, training, at_once=at_once, mask=mask)
            output = layer_output(
                applied.y,
                fused=options.unbiased_moving_variance,
                grouped=options.virtual_batch_size is not None,
                dynamic=not isinstance(training, bool),
            )
        if not at_once:
            updates = [getattr(one, "op", one) for one in applied.updates]
            self.updates += updates
            for one in updates:
                v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, one)
        return output

    apply = __call__

    def build(self, input_shape: Any) -> None:
        """Makes the variables for inputs of this shape; the first call does it otherwise."""
        _variables.updates_at_once(self._owner)
        shape, dtype = tf.TensorShape(input_shape), self._dtype or tf.float32
        options = self._options(shape, dtype, masked=False)
        axes = _variables.known_axes(options, shape)
        with self._scope.entered(None, built=self.built):
            self._build(options, axes, shape, dtype)

    def _build(
        self, options: Options, axes: tuple[int, ...], shape: tf.TensorShape, dtype: tf.DType
    ) -> None:
        wanted = {"gamma": self.scale, "beta": self.center}
        losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        vectors = _variables.create(
            [
                Parameter(name, *(getattr(self, f"{name}_{kind}") for kind in _KINDS))
                for name in wanted
                if wanted[name]
            ],
            self.moving_mean_initializer,
            self.moving_variance_initializer,
            renorm=options.renorm,
            shape=_variables.vector_shape(shape.as_list(), axes, options),
            dtype=_variables.parameter_dtype(self._dtype or dtype),
            trainable=self.trainable,
        )
        self._hold(vectors)
        now = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
        self.losses += now[len(losses) :]
        self._shape = tf.TensorShape(
            [size if i in axes else None for i, size in enumerate(shape.as_list())]
        )
        self.built = True

    def _hold(self, vectors: Vectors) -> None:
        """Makes the variables attributes, None for those that there are not."""
        self._vectors = vectors
        self.gamma, self.beta = (vectors.parameters.get(name) for name in ("gamma", "beta"))
        names = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
        for name in names:
            setattr(self, name, vectors.state.get(name))

    def _check_shape(self, axes: tuple[int, ...], shape: tf.TensorShape) -> None:
        if not self._shape.is_compatible_with(shape):
            raise ValueError(
                f"{self._owner}: inputs must have the shape {tuple(self._shape.as_list())}, as in "
                f"the first call; got {tuple(shape.as_list())}. Make another layer."
            )

    def _options(self, shape: tf.TensorShape, dtype: tf.DType, masked: bool) -> Options:
        unbiased = not masked and moves_unbiased(
            shape,
            dtype,
            self.axis,
            fused=self.fused,
            composed=self.renorm or self.virtual_batch_size is not None or self.adjustment,
        )
        return checked(
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            renorm=self.renorm,
            renorm_clipping=self.renorm_clipping,
            renorm_momentum=self.renorm_momentum,
            fused=self.fused,
            virtual_batch_size=self.virtual_batch_size,
            adjustment=self.adjustment,
            update_statistics="auto" if self.trainable else False,
            unbiased_moving_variance=unbiased,
            dtype=_variables.parameter_dtype(dtype),
            owner=self._owner,
        )

    @property
    def _owner(self) -> str:
        return f"BatchNormalization {self.name!r}"

    @property
    def scope_name(self) -> str:
        """The name of the variable scope, which the first call opens."""
        if self._scope.name is None:
            raise ValueError(
                f"{self._owner}: scope_name must be read after the first call; got none before it."
            )
        return self._scope.name

    @property
    def dtype(self) -> Any:
        """The type of the variables; None before the first call."""
        made = self._vectors.state.get("moving_mean")
        return self._dtype or (None if made is None else made.dtype.base_dtype)

    @property
    def trainable_variables(self) -> list[Any]:
        return list(self._vectors.parameters.values()) if self.trainable else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        frozen = [] if self.trainable else list(self._vectors.parameters.values())
        return frozen + list(self._vectors.state.values())

    @property
    def variables(self) -> list[Any]:
        return self.trainable_variables + self.non_trainable_variables

    trainable_weights = trainable_variables
    non_trainable_weights = non_trainable_variables
    weights = variables

    def get_updates_for(self, inputs: Any) -> list[Any]:
        """The update ops, all of which depend on the inputs."""
        return [] if inputs is None else list(self.updates)

    def get_losses_for(self, inputs: Any) -> list[Any]:
        """The regularization losses, none of which depends on the inputs."""
        return list(self.losses) if inputs is None else []


def batch_normalization(
    inputs: Any,
    axis: int | Sequence[int] = -1,
    momentum: Any = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = _ZEROS,
    gamma_initializer: Any = _ONES,
    moving_mean_initializer: Any = _ZEROS,
    moving_variance_initializer: Any = _ONES,
    beta_regularizer: Any = None,
    gamma_regularizer: Any = None,
    beta_constraint: Any = None,
    gamma_constraint: Any = None,
    training: Any = False,
    trainable: bool = True,
    name: str | None = None,
    reuse: Any = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_momentum: Any = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """`tf.compat.v1.layers.batch_normalization`: makes a `BatchNormalization` and calls it.

    Args:
        inputs: what is normalized; the other arguments are those of `BatchNormalization`.
        training: a bool, 0 or 1, or a scalar tensor such as a placeholder. True normalizes with the
            batch and makes two ops in the collection UPDATE_OPS, which the training step must run:

                with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
                    train = optimizer.minimize(loss)

        name: of the layer and its variable scope; `batch_normalization` and so on by default.
        reuse: True takes the variables of the layer of this name, AUTO_REUSE takes or makes them.

    Returns:
        A tensor of the inputs' shape and type.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        ValueError: `reuse` is True without a name (D45), or does not fit the variables there are.
        ValueError: the call is under eager execution without a variable store.
    """
    if reuse is True and name is None:
        raise ValueError(
            "batch_normalization: name must be given with reuse=True; got None. Name the layer "
            "whose variables are meant."
        )
    layer = BatchNormalization(
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        beta_initializer=beta_initializer,
        gamma_initializer=gamma_initializer,
        moving_mean_initializer=moving_mean_initializer,
        moving_variance_initializer=moving_variance_initializer,
        beta_regularizer=beta_regularizer,
        gamma_regularizer=gamma_regularizer,
        beta_constraint=beta_constraint,
        gamma_constraint=gamma_constraint,
        renorm=renorm,
        renorm_clipping=renorm_clipping,
        renorm_momentum=renorm_momentum,
        fused=fused,
        trainable=trainable,
        virtual_batch_size=virtual_batch_size,
        adjustment=adjustment,
        name=name,
        _reuse=reuse,
        _scope=name,
    )
    return layer(inputs, training=training)
