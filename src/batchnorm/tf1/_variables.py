"""Variables of the TensorFlow 1 functions: made by `get_variable`, named as in the originals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import variable_scope as scopes  # the store has no public name

from batchnorm import _axes
from batchnorm._options import Options

v1 = tf.compat.v1
Variable = Any


@dataclass(frozen=True)
class Parameter:
    """How gamma or beta is made."""

    name: str
    initializer: Any
    regularizer: Any = None
    constraint: Any = None


@dataclass(frozen=True)
class Vectors:
    """The variables of a layer by their names in the core: parameters and state."""

    parameters: dict[str, Variable] = field(default_factory=dict)
    state: dict[str, Variable] = field(default_factory=dict)


def updates_at_once(owner: str) -> bool:
    """Whether assignments run where they are written, not where the graph fetches them.

    So it is under eager execution and in tf.function, where variables need a store that keeps them
    between calls. `tf.compat.v1.wrap_function` is a graph.

    Raises:
        ValueError: there is no such store. Each call would make new variables (D39).
    """
    if not v1.executing_eagerly_outside_functions():
        return False
    # tf.function orders its side effects; wrap_function, a graph for TensorFlow 1 code, does not
    ordered = getattr(v1.get_default_graph(), "_add_control_dependencies", False)
    if not tf.executing_eagerly() and not ordered:
        return False
    if not getattr(scopes._get_default_variable_store(), "_store_eager_variables", False):
        raise ValueError(
            f"{owner}: the call must be in a TensorFlow 1 graph or in a variable store; got eager "
            "execution, where each call would make new variables. Build the model under "
            "tf.Graph().as_default(), decorate the method with track_tf1_style_variables, or use "
            "batchnorm.keras.BatchNormalization."
        )
    return True


def vector_shape(
    shape: Sequence[int | None], axes: tuple[int, ...], options: Options
) -> tuple[int | None, ...]:
    """The shape of a vector in the originals' checkpoints.

    One axis: `(C,)`. Several: rank(x), with 1 off the axes. Ghost batches: so for one axis too, and
    another 1 behind the first size.
    """
    if options.virtual_batch_size is None:
        return _axes.parameter_shape(shape, axes)
    full = [size if i in axes else 1 for i, size in enumerate(shape)]
    return (full[0], 1, *full[1:])


def known_axes(options: Options, shape: tf.TensorShape) -> tuple[int, ...]:
    """The axes of an input of this shape, ascending and not negative.

    Raises:
        ValueError: the rank, or the size on an axis, is not known.
    """
    if shape.rank is None:
        raise ValueError(
            f"{options.owner}: inputs must have a known rank; got an undefined rank. Set its "
            "static shape."
        )
    axes = _axes.resolve(options.axis, shape.rank, options.owner)
    options.check_axes(axes)
    sizes = shape.as_list()  # plain integers, also where TensorFlow 1 behavior is on
    for axis in axes:
        if sizes[axis] is None:
            raise ValueError(
                f"{options.owner}: inputs must have a known size on axis {axis}; got the shape "
                f"{tuple(sizes)}, undefined there. Set its static shape."
            )
    return axes


def create(
    parameters: Sequence[Parameter],
    moving_mean_initializer: Any,
    moving_variance_initializer: Any,
    *,
    renorm: bool,
    shape: Sequence[Any],
    dtype: tf.DType,
    trainable: bool,
    add: Callable[..., Variable] = v1.get_variable,
    collections: Callable[[str], list[str]] | None = None,
) -> Vectors:
    """Gets or makes parameters, then the state, in this order, in the current variable scope.

    Args:
        add: makes one variable, as `get_variable` does.
        collections: those of a variable by its name; None leaves them to `add`.
    """
    made = Vectors()
    for one in parameters:
        made.parameters[one.name] = add(
            name=one.name,
            shape=shape,
            dtype=dtype,
            initializer=one.initializer,
            regularizer=one.regularizer,
            constraint=one.constraint,
            trainable=trainable,
            **({} if collections is None else {"collections": collections(one.name)}),
        )
    initializers = {
        "moving_mean": moving_mean_initializer,
        "moving_variance": moving_variance_initializer,
    }
    if renorm:
        initializers["moving_stddev"] = _root(moving_variance_initializer)
        initializers["renorm_mean"] = moving_mean_initializer
        initializers["renorm_stddev"] = _root(moving_variance_initializer)
    for name, initializer in initializers.items():
        into = None if collections is None else collections(name)
        made.state[name] = statistic(name, shape, dtype, initializer, into, add)
    return made


def create_debiasing(
    made: Vectors, dtype: tf.DType, collections: list[str]
) -> Mapping[str, Variable]:
    """The two variables of zero_debias, `<scope>/<scope>/moving_mean/biased` and `local_step`.

    The scope is there twice in every checkpoint of the originals (D28).
    """
    mean = made.state["moving_mean"]
    zeros = v1.zeros_initializer()
    with v1.variable_scope(mean.op.name, reuse=v1.AUTO_REUSE):
        return {
            "biased_mean": statistic("biased", mean.shape, dtype, zeros, collections),
            "local_step": statistic("local_step", (), dtype, zeros, collections),
        }


def statistic(
    name: str,
    shape: Sequence[Any],
    dtype: tf.DType,
    initializer: Any,
    collections: list[str] | None = None,
    add: Callable[..., Variable] = v1.get_variable,
) -> Variable:
    """A variable that is remembered, not trained.

    The scope's partitioner does not split it, and the scope's regularizer, which is meant for
    weights, does not pull it to zero (D44).
    """
    with v1.variable_scope(v1.get_variable_scope(), auxiliary_name_scope=False) as scope:
        scope.set_partitioner(None)
        scope.set_regularizer(None)
        return add(
            name=name,
            shape=shape,
            dtype=dtype,
            initializer=initializer,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
            **({} if collections is None else {"collections": collections}),
        )


def _root(initializer: Any) -> Callable[..., tf.Tensor]:
    """The initializer of a standard deviation, for that of a variance."""
    if initializer is None:
        initializer = v1.get_variable_scope().initializer or v1.ones_initializer()
    if isinstance(initializer, type):
        initializer = initializer()
    return lambda shape, dtype=None, **_: tf.sqrt(initializer(shape, dtype=dtype))


def parameter_dtype(dtype: tf.DType) -> tf.DType:
    """float64 for float64, else float32: 16 bits cannot hold statistics (D22)."""
    return tf.float64 if dtype == tf.float64 else tf.float32
