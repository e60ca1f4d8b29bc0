"""The layer of `tf.layers`, and what a subclass may put in the place of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from batchnorm._arguments import resolve_training
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from batchnorm._statistics import state_names
from batchnorm.backends import tensorflow as backend
from batchnorm.tf1 import _keras_names, _overrides, _variables
from batchnorm.tf1._application import apply
from batchnorm.tf1._layer import InputSpec, Layer
from batchnorm.tf1._moments import moments, normalize_with
from batchnorm.tf1._naming import layer_output
from batchnorm.tf1._options import checked
from batchnorm.tf1._originals import takes_fused
from batchnorm.tf1._variables import Parameter, Vectors

v1 = tf.compat.v1
_KEYWORDS = {"dtype", "_reuse", "_scope"}
ZEROS, ONES = v1.zeros_initializer(), v1.ones_initializer()
_KINDS = ("initializer", "regularizer", "constraint")
_PARAMETERS = ("beta", "gamma")
_FUNCTIONS = (
    *(f"{name}_initializer" for name in (*_PARAMETERS, "moving_mean", "moving_variance")),
    *(f"{name}_{kind}" for kind in _KINDS[1:] for name in _PARAMETERS),
)
_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean",
              "renorm_stddev")  # fmt: skip


class BatchNormalization(Layer):
    """`tf.compat.v1.layers.BatchNormalization`, on today's TensorFlow.

    Called as `layer(inputs, training=False, mask=None)` while a graph is built. The first call
    makes the variables, in the variable scope that `name` opens; later calls share them. In a graph
    the updates of the moving statistics are in the collection UPDATE_OPS, two for each call, and
    move nothing unless they are run. Inside `track_tf1_style_variables` they run at once.

    Formulas and edge cases are at `batchnorm.batch_norm`. `trainable=False` normalizes with the
    batch in training and updates nothing. The moving variance is unbiased (N - 1) where the
    original ran its fused kernel, which is rank 4 and 5 by default, else biased.

    A subclass may override `call`, `build`, `add_weight`, `add_update`, `_fused_can_be_used`,
    `_get_training_value`, and, for statistics of its own, `_moments` or `_calculate_mean_and_var`:
    `(self, inputs, reduction_axes, keep_dims[, mask]) -> (mean, variance)`. With those two, the
    composite path is taken, gradients go through what they do, and the variance is remembered as it
    is. An override that would never be called is refused when the class is made.

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
        TypeError: where a subclass is defined, it overrides what nothing here calls.
        ValueError: at a call, under eager execution without a variable store.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _overrides.check(cls)

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: Any = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = ZEROS,
        gamma_initializer: Any = ONES,
        moving_mean_initializer: Any = ZEROS,
        moving_variance_initializer: Any = ONES,
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
        super().__init__(
            trainable,
            name,
            kwargs.get("dtype"),
            reuse=kwargs.get("_reuse"),
            scope=kwargs.get("_scope"),
        )
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
        self.virtual_batch_size = virtual_batch_size
        self.adjustment = adjustment
        for variable in _VARIABLES:
            setattr(self, variable, None)
        self._options()  # checks them

    @property
    def axis(self) -> Any:
        """What was given; once built, the axes as the original laid the inputs out: a list, with
        another dimension in front for ghost batches."""
        return self._given_axis if self._laid_axis is None else self._laid_axis

    @axis.setter
    def axis(self, value: Any) -> None:
        self._given_axis = value
        self._laid_axis: list[int] | None = None

    @property
    def fused(self) -> bool:
        """What was given, None as True; once built, whether the original took its fused kernel."""
        return self._given_fused is not False if self._took_fused is None else self._took_fused

    @fused.setter
    def fused(self, value: bool | None) -> None:
        self._given_fused = value
        self._took_fused: bool | None = None

    def build(self, input_shape: Any) -> None:
        """Makes the variables for inputs of this shape; the first call does it otherwise."""
        _variables.updates_at_once(self._owner)
        shape, options = tf.TensorShape(input_shape), self._options()
        axes = _variables.known_axes(options, shape)
        self.input_spec = InputSpec(ndim=shape.rank, axes={i: shape.as_list()[i] for i in axes})
        wanted = {"gamma": self.scale, "beta": self.center}
        with self._scope.entered():
            made = _variables.create(
                [
                    Parameter(name, *(getattr(self, f"{name}_{kind}") for kind in _KINDS))
                    for name in wanted
                    if wanted[name]
                ],
                self.moving_mean_initializer,
                self.moving_variance_initializer,
                renorm=options.renorm,
                shape=_variables.vector_shape(shape.as_list(), axes, options),
                dtype=self._param_dtype,
                trainable=True,
                add=self.add_weight,
            )
        for name, variable in (*made.parameters.items(), *made.state.items()):
            setattr(self, name, variable)
        self._took_fused = self._takes_fused(shape.rank)
        self._laid_axis = [i + (options.virtual_batch_size is not None) for i in axes]
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = False, mask: Any = None) -> Any:
        """Inputs, normalized, with their shape and type."""
        options = self._options(unbiased=bool(self._took_fused) and mask is None)
        _variables.known_axes(options, inputs.shape)
        training = resolve_training(backend, self._get_training_value(training), options.owner)
        own = self._measures_itself()
        at_once = _variables.updates_at_once(self._owner)
        applied = apply(
            options,
            inputs,
            self._vectors(options),
            training,
            at_once=at_once,
            mask=mask,
            arithmetic=partial(normalize_with, self._measure) if own else normalize,
        )
        if not at_once:
            self.add_update(applied.updates)
        return layer_output(
            applied.y,
            fused=options.unbiased_moving_variance,
            grouped=options.virtual_batch_size is not None,
            dynamic=not isinstance(training, bool),
        )

    def _get_training_value(self, training: Any = None) -> Any:
        """What `training` is, of what `call` got."""
        return training

    def _moments(
        self, inputs: Any, reduction_axes: Sequence[int], keep_dims: bool, mask: Any = None
    ) -> Any:
        """Mean and biased variance of the batch, as `_calculate_mean_and_var` says.

        Called for a subclass that overrides one of the two, with float32 or float64 inputs.
        """
        return _overrides.measured_by(
            self._calculate_mean_and_var, self._owner, inputs, reduction_axes, keep_dims, mask
        )

    def _calculate_mean_and_var(
        self, inputs: Any, reduction_axes: Sequence[int], keep_dims: bool, mask: Any = None
    ) -> Any:
        return moments(inputs, reduction_axes, keep_dims, mask, axes=self.axis)

    def _fused_can_be_used(self) -> bool:
        """Whether the original's fused kernel had all of the options. An override may forbid it,
        and with it our kernels."""
        return any(self._fits_fused(rank) for rank in (4, 5))

    def _fits_fused(self, rank: int | None) -> bool:
        composed = self.renorm or self.virtual_batch_size is not None or self.adjustment
        dtype = self._dtype or self._input_dtype
        return takes_fused(rank, dtype.name, self._given_axis, composed)

    def _takes_fused(self, rank: int | None) -> bool:
        """Whether the original took its fused kernel for inputs of this rank."""
        if self._given_fused is False or self._measures_itself():
            return False
        return self._fits_fused(rank) and self._fused_can_be_used()

    def _measures_itself(self) -> bool:
        return _overrides.overrides(self, BatchNormalization, "_moments", "_calculate_mean_and_var")

    def _measure(self, inputs: Any, reduction_axes: list[int], keep_dims: bool, mask: Any) -> Any:
        return _overrides.measured_by(
            self._moments, self._owner, inputs, reduction_axes, keep_dims, mask
        )

    def _vectors(self, options: Options) -> Vectors:
        """The variables, or what a subclass put in their place."""
        if self.moving_mean is None:
            raise ValueError(
                f"{self._owner}: call must come after build; got no variables. Call the layer "
                "itself."
            )
        parameters = {name: getattr(self, name) for name in ("gamma", "beta")}
        return Vectors(
            {name: one for name, one in parameters.items() if one is not None},
            {name: getattr(self, name) for name in state_names(options)},
        )

    @property
    def _param_dtype(self) -> tf.DType:
        return _variables.parameter_dtype(self._dtype or self._input_dtype)

    def _options(self, unbiased: bool = False) -> Options:
        fused = self._given_fused
        if _overrides.overrides(self, BatchNormalization, "_fused_can_be_used"):
            fused = fused if self._fused_can_be_used() else False
        return checked(
            axis=self._given_axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            renorm=self.renorm,
            renorm_clipping=self.renorm_clipping,
            renorm_momentum=self.renorm_momentum,
            fused=fused,
            virtual_batch_size=self.virtual_batch_size,
            adjustment=self.adjustment,
            update_statistics="auto" if self.trainable else False,
            unbiased_moving_variance=unbiased,
            dtype=self._param_dtype,
            owner=self._owner,
        )

    def get_config(self) -> dict[str, Any]:
        """What was given, whatever was built since; everything but `adjustment`."""
        if self.adjustment is not None:
            warnings.warn(
                f"{self._owner}: adjustment is a function and is not saved; set it again on the "
                "loaded layer.",
                stacklevel=2,
            )
        given = {name: getattr(self, name) for name in ("momentum", "epsilon", "center", "scale")}
        config = super().get_config() | {"axis": self._given_axis} | given
        for name in _FUNCTIONS:
            config[name] = _keras_names.plain(getattr(self, name))
        if self.renorm:
            names = ("renorm", "renorm_clipping", "renorm_momentum")
            config |= {name: getattr(self, name) for name in names}
        for name, value in (("virtual_batch_size", self.virtual_batch_size),
                            ("fused", self._given_fused)):  # fmt: skip
            if value is not None:
                config[name] = value
        return config
