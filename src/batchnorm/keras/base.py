"""Batch normalization as Keras 3 layers: they hold the variables, the core does the arithmetic."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Unpack

import keras

from batchnorm import _axes
from batchnorm._arguments import resolve_training
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from batchnorm._statistics import state_names
from batchnorm._types import GhostOrder, OnNonfinite, Statistics, UpdateStatistics, ZeroDebias
from batchnorm.backends import backend_of, why_not
from batchnorm.keras import variables
from batchnorm.keras.inputs import flat, mask_of
from batchnorm.keras.keywords import LayerKeywords
from batchnorm.keras.options import (
    SAVED,
    arguments,
    as_tensors,
    configuration,
    plain,
    returning_tensors,
)
from batchnorm.keras.recomputing import States


@keras.saving.register_keras_serializable(package="batchnorm")
class BatchNormalizationBase(keras.layers.BatchNormalization):
    """Batch normalization with every mode of the family as an argument.

    Called as `layer(x, training=None, mask=None, batch_weights=None, residual=None)`; what the call
    arguments and the options below do, formulas, shapes and edge cases are at
    `batchnorm.batch_norm`. A mask that comes with x covers the dimensions before the last.

    Normalizes with the batch where `training` is true and the layer is trainable, else with the
    moving statistics. In a frozen layer (`trainable=False`) nothing changes, unless `statistics`
    or `update_statistics` say otherwise.

    Types: statistics and parameters are float32 under every 16-bit policy, float64 under float64.
    Inputs, integers too, are cast to the policy's compute dtype; the output has it.

    Args:
        axis: an integer, or a list of them for statistics per combination.
        momentum: the share of the old moving statistics that a step keeps, in [0, 1].
        epsilon: added to the variance, >= 0.
        center: whether there is a beta.
        scale: whether there is a gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer:
            initial values, as everywhere in Keras.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: as in Keras.
        renorm, renorm_clipping, renorm_momentum: batch renormalization. Clipping values may be
            numbers, tensors, or functions of the step such as a
            `keras.optimizers.schedules.LearningRateSchedule`, which is saved with the layer. With
            `renorm_momentum=None` it pulls to the moving statistics and keeps none of its own.
        fused: None takes the fastest path that is right, True insists on a native kernel, False
            never takes one.
        virtual_batch_size: the size of ghost batches.
        ghost_order: "strided", as in the originals, or "chunks": consecutive samples, the last
            group smaller, remembered one after the other.
        adjustment: a function of the shape that returns (scale, bias). It is not saved.
        synchronized: take statistics over all replicas: True, or what names them on torch and JAX.
        unbiased_moving_variance: remember variance * N / (N - 1).
        pooled_moving_variance: with ghost batches, remember the variance of the whole batch.
        statistics: what normalizes: "auto", "batch" or "moving".
        update_statistics: what is remembered: "auto" (training and trainable), True or False.
        on_nonfinite: "skip", "propagate" or "raise".
        zero_debias: False, "mean" or "both".
        train_parameters: False keeps gamma and beta as they are, whatever `trainable` says.
        activation: any Keras activation, applied to the output. ReLU runs inside the kernels, which
            keep nothing for its gradient.

    Raises:
        TypeError, ValueError: an argument is not what it must be; the message names it.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, Any] | None = None,
        renorm_momentum: float | None = 0.99,
        fused: bool | None = None,
        trainable: bool = True,
        virtual_batch_size: int | None = None,
        adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
        name: str | None = None,
        *,
        synchronized: Any = False,
        unbiased_moving_variance: bool = False,
        pooled_moving_variance: bool = False,
        statistics: Statistics = "auto",
        update_statistics: UpdateStatistics = "auto",
        on_nonfinite: OnNonfinite = "skip",
        zero_debias: ZeroDebias = False,
        train_parameters: bool = True,
        activation: Any = None,
        ghost_order: GhostOrder = "strided",
        **kwargs: Unpack[LayerKeywords],
    ) -> None:
        if unknown := sorted(set(kwargs) - set(LayerKeywords.__annotations__)):
            raise TypeError(
                f"{type(self).__name__}: the keyword arguments must be known ones; got {unknown}."
            )
        # Not Keras' own constructor: it knows one axis and one engine for `synchronized`. `call`
        # casts the input itself: Keras' autocast would round `batch_weights` to 16 bits as well.
        kwargs["autocast"] = False
        keras.layers.Layer.__init__(self, name=name, trainable=trainable, **kwargs)
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.fused = fused
        self.virtual_batch_size = virtual_batch_size
        self.ghost_order = ghost_order
        self.adjustment = adjustment
        self.synchronized = synchronized
        self.unbiased_moving_variance = unbiased_moving_variance
        self.pooled_moving_variance = pooled_moving_variance
        self.statistics = statistics
        self.update_statistics = update_statistics
        self.on_nonfinite = on_nonfinite
        self.zero_debias = zero_debias
        self.activation = keras.activations.get(activation)
        self.supports_masking = True
        self.gamma: keras.Variable | None = None
        self.beta: keras.Variable | None = None
        self.train_parameters = train_parameters
        self.moving_mean: keras.Variable | None = None
        self.moving_variance: keras.Variable | None = None
        self._states = States()
        self._counters = variables.Counters(self)
        self._kept = SimpleNamespace(key=None, options=None)  # Keras would track a tuple
        options = self._options()
        if options.fused and (reason := why_not(keras.backend.backend())):
            raise ValueError(
                f"{options.owner}: fused must be None or False here; got True. {reason}"
            )

    def _options(self) -> Options:
        """The options as they are now: attributes may be set at any time, and are checked anew."""
        given = {name: self._option(name) for name in SAVED}
        given |= {"adjustment": self.adjustment, "activation": self.activation}
        key = plain(given)
        if key is not None and key == self._kept.key:
            kept: Options = self._kept.options
            return kept
        options = Options(
            **{name: as_tensors(given[name]) for name in SAVED},
            adjustment=returning_tensors(self.adjustment),
            activation="relu" if self.activation is keras.activations.relu else None,
            owner=f"{type(self).__name__} {self.name!r}",
        )
        self._kept.key, self._kept.options = key, options
        return options

    def _option(self, name: str) -> Any:
        """What an option is in the next call; V1 has its own view of some."""
        return getattr(self, name)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        options = self._options()
        axes = _axes.resolve(options.axis, len(input_shape), options.owner)
        options.check_axes(axes)
        for axis in axes:
            if input_shape[axis] is None:
                raise ValueError(
                    f"{options.owner}: the input must have a known size on axis {axis}; got the "
                    f"shape {tuple(input_shape)}."
                )
        self.input_spec = keras.layers.InputSpec(
            ndim=len(input_shape), axes={axis: input_shape[axis] for axis in axes}
        )
        shape = _axes.parameter_shape(input_shape, axes)
        if self.scale:
            self.gamma = variables.parameter(self, "gamma", shape)
        if self.center:
            self.beta = variables.parameter(self, "beta", shape)
        self._hold_parameters()
        for name in state_names(options):
            setattr(self, name, variables.statistic(self, name, shape))
        for name, of in zip(variables.COUNTERS, ((), shape), strict=True):
            setattr(self, name, variables.counter(self, name, of))

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        self._hold_parameters()

    @property
    def train_parameters(self) -> bool:
        """Whether gamma and beta are trained where the layer is."""
        return self._train_parameters

    @train_parameters.setter
    def train_parameters(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(
                f"{type(self).__name__} {self.name!r}: train_parameters must be True or False; "
                f"got {value!r}."
            )
        self._train_parameters = value
        self._hold_parameters()

    def _hold_parameters(self) -> None:
        for variable in (self.gamma, self.beta):
            if variable is not None:
                variable.trainable = self._trainable and self._train_parameters

    def call(
        self,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        batch_weights: Any = None,
        residual: Any = None,
    ) -> Any:
        given = (inputs, training, mask, batch_weights, residual)
        return self._call(lambda function: function, *given)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Under `keras.RematScope`: recomputes the arithmetic alone, so state moves once.

        Keras (3.15) recomputes the whole call, which fails on TensorFlow (keyword arguments) and
        JAX (leaked tracers) and updates the statistics twice on torch.
        """
        if super().rematerialized_call(layer_call, *args, **kwargs) is layer_call:
            return layer_call
        return functools.partial(self._call, keras.remat)

    def _call(
        self,
        transform: Callable[[Any], Any],
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        batch_weights: Any = None,
        residual: Any = None,
    ) -> Any:
        """`call`, with a transformation such as `keras.remat` around what is pure in it."""
        options = self._options()
        names = (*state_names(options), *variables.COUNTERS)
        state = {name: getattr(self, name).value for name in names}
        ops = backend_of(state["moving_mean"])
        training = resolve_training(ops, self._training(training), options.owner)
        mask = mask_of(options, inputs, training, mask)
        given = flat(options, inputs, mask, batch_weights, residual)
        recomputing = ops.recomputing()
        state = self._states.of_this_call(options, training, state, recomputing)
        others = (state, training, given.mask, given.batch_weights, self._update_from(names))
        held = {"gamma": self.gamma, "beta": self.beta}
        arrays = given.arrays(self.compute_dtype) | {
            name: one.value for name, one in held.items() if one is not None
        }

        def function(*values: Any) -> tuple[Any, dict[str, Any]]:
            own = dict(zip(arrays, values, strict=True))
            x, residual = own.pop("x"), own.pop("residual", None)
            y, new = normalize(given.options, x, own, *others, residual)
            return y, {name: new[name] for name in names if new[name] is not state[name]}

        outputs, changed = transform(function)(*arrays.values())
        if not recomputing:
            self._assign(changed)
        if options.activation is None and self.activation is not keras.activations.linear:
            outputs = self.activation(outputs)
        return given.restored(outputs)

    def _training(self, training: Any) -> Any:
        """Whether this call trains: never where the layer is frozen, in V2."""
        return training if self.trainable else False

    def _update_from(self, names: Sequence[str]) -> dict[str, Any] | None:
        """What the next state starts from, where it is not the present one."""
        return None

    def _assign(self, changed: Mapping[str, Any]) -> None:
        for name, value in changed.items():
            getattr(self, name).assign(value)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    @property
    def weights(self) -> list[keras.Variable]:
        """Parameters and statistics in Keras' order: gamma, beta, moving_mean, moving_variance,
        then renorm's and zero_debias'.

        The counters `num_updates` and `skipped_updates` are among `variables`, like Keras' random
        seeds, so that `get_weights` and `set_weights` fit Keras' own layer; so are the variables
        that were given as options.
        """
        hidden = [getattr(self, name, None) for name in variables.COUNTERS]
        hidden += [self.momentum, self.renorm_momentum, *(self.renorm_clipping or {}).values()]
        return [one for one in super().weights if all(one is not other for other in hidden)]

    def save_own_variables(self, store: Any) -> None:
        variables.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        variables.load(self, store)

    def get_config(self) -> dict[str, Any]:
        """What the user gave, whatever was built since; everything but `adjustment`."""
        if self.adjustment is not None:
            warnings.warn(
                f"{type(self).__name__} {self.name!r}: adjustment is a function and is not saved; "
                "set it again on the loaded layer.",
                stacklevel=2,
            )
        return keras.layers.Layer.get_config(self) | configuration(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BatchNormalizationBase:
        return cls(**arguments(config))
