"""`tf.contrib.layers`: batch normalization with collections, activation and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from batchnorm._arguments import resolve_training
from batchnorm._options import Options
from batchnorm.backends import tensorflow as backend
from batchnorm.tf1 import _variables
from batchnorm.tf1._application import apply
from batchnorm.tf1._collections import add_output, add_updates, of_variables
from batchnorm.tf1._collections import check as check_collections
from batchnorm.tf1._naming import contrib_output
from batchnorm.tf1._options import checked
from batchnorm.tf1._originals import takes_fused
from batchnorm.tf1._variables import Parameter

try:
    from tf_slim.layers.layers import batch_norm as slim_batch_norm
    from tf_slim.ops import arg_scope
except ImportError:  # without tf_slim there is no arg_scope to be set from
    arg_scope = None

v1 = tf.compat.v1
DATA_FORMATS = ("NHWC", "NCHW")


def _scoped(function: Any) -> Any:
    """The function, set by tf_slim's `arg_scope`s of its own `batch_norm` as well as of this."""
    if arg_scope is None:
        return function
    function._key_op = arg_scope.arg_scope_func_key(slim_batch_norm)
    return arg_scope.add_arg_scope(function)


@_scoped
def batch_norm(
    inputs: Any,
    decay: Any = 0.999,
    center: bool = True,
    scale: bool = False,
    epsilon: float = 0.001,
    activation_fn: Callable[[Any], Any] | None = None,
    param_initializers: Mapping[str, Any] | None = None,
    param_regularizers: Mapping[str, Any] | None = None,
    updates_collections: Any = v1.GraphKeys.UPDATE_OPS,
    is_training: Any = True,
    reuse: Any = None,
    variables_collections: Any = None,
    outputs_collections: Any = None,
    trainable: bool = True,
    batch_weights: Any = None,
    fused: bool | None = None,
    data_format: str = "NHWC",
    zero_debias_moving_mean: bool = False,
    scope: Any = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_decay: Any = 0.99,
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """`tf.contrib.layers.batch_norm`, on today's TensorFlow.

    Formulas and edge cases are at `batchnorm.batch_norm`. All options work together. It can be
    given as `normalizer_fn`, and set from tf_slim's `arg_scope`.

    Args:
        inputs: of float16, bfloat16, float32 or float64.
        decay: the share of the old moving statistics that a step keeps: a number or tensor.
        center, scale: whether there is a beta, a gamma.
        epsilon: added to the variance.
        activation_fn: called on the output; `tf.nn.relu` runs inside the kernel.
        param_initializers: by the names beta, gamma, moving_mean and moving_variance.
        param_regularizers: by the names beta and gamma.
        updates_collections: where the two update ops of a call go: a name, or several. None updates
            in place: computing the output, or a gradient through it, moves the statistics. `()`
            makes none to fetch.
        is_training: a bool, 0 or 1, or a scalar tensor.
        reuse: True takes the variables that `scope` has, AUTO_REUSE takes or makes them.
        variables_collections: a name or several, for all variables; or a dictionary of these by the
            names beta, gamma, moving_mean and moving_variance.
        outputs_collections: a name or several, for the output.
        trainable: whether beta and gamma join TRAINABLE_VARIABLES, and anything is updated.
        batch_weights: `[batch]`; a sample of weight 2 counts like two.
        fused: None and True take the fastest path, False only TensorFlow's own ops.
        data_format: "NHWC" for channels behind everything, "NCHW" for channels behind the samples;
            of any rank.
        zero_debias_moving_mean: removes the initial value from the moving mean.
        scope: the variable scope; `BatchNorm` and so on by default.
        renorm, renorm_clipping, renorm_decay, adjustment: see `batchnorm.batch_norm`.

    Returns:
        A tensor of the inputs' shape and type. The moving variance is unbiased (N - 1) where the
        original ran a fused kernel, else biased.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        ValueError: the call is under eager execution without a variable store.
    """
    _check(data_format, is_training, reuse, scope, activation_fn)
    _check_mappings(param_initializers=param_initializers, param_regularizers=param_regularizers)
    check_collections(
        updates_collections=updates_collections,
        variables_collections=variables_collections,
        outputs_collections=outputs_collections,
    )
    inputs = tf.convert_to_tensor(inputs)
    at_once = _variables.updates_at_once("batch_norm")
    axis = 1 if data_format == "NCHW" else -1
    path = _path(
        inputs, axis, fused, updates_collections, zero_debias_moving_mean, batch_weights,
        composed=renorm or adjustment is not None,
    )  # fmt: skip
    with v1.variable_scope(scope, "BatchNorm", [inputs], reuse=reuse) as opened:
        owner = f"batch_norm {opened.name!r}"
        training = resolve_training(backend, is_training, owner, "is_training")
        updating = trainable and training is not False
        dtype = _variables.parameter_dtype(inputs.dtype)
        options = checked(
            axis=axis,
            momentum=decay,
            epsilon=epsilon,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_decay,
            fused=fused,
            adjustment=adjustment,
            update_statistics="auto" if trainable else False,
            unbiased_moving_variance=path.unbiased,
            zero_debias=bool(zero_debias_moving_mean and updating),
            activation="relu" if _is_relu(activation_fn) else None,
            dtype=dtype,
            owner=owner,
            known_as={"momentum": "decay", "renorm_momentum": "renorm_decay"},
        )
        vectors = _vectors(
            options, inputs, path, center, scale, dtype, trainable,
            param_initializers or {}, param_regularizers or {}, variables_collections,
        )  # fmt: skip
        in_place = updates_collections is None
        applied = apply(
            options,
            inputs,
            vectors,
            training,
            at_once=at_once,
            in_place=in_place,
            batch_weights=_weights(inputs, batch_weights, training, owner),
        )
        output = contrib_output(
            applied.y,
            path,
            dynamic=not isinstance(training, bool),
            in_place=in_place and updating,
            activation=options.activation,
        )
        if activation_fn is not None and options.activation is None:
            output = activation_fn(output)
        if not at_once:
            add_updates(updates_collections, applied.updates, as_operations=path.core)
        return add_output(outputs_collections, opened.name, output)


class _Path(NamedTuple):
    """Which of the three implementations the original took: only what it leaves in a graph.

    Attributes:
        core: the layer of `tf.layers`, not contrib's own code.
        unbiased: a fused kernel, which keeps the unbiased variance.
        flat: its kernel saw rank 2 as rank 4.
    """

    core: bool
    unbiased: bool
    flat: bool


def _path(
    inputs: Any,
    axis: int,
    fused: bool | None,
    updates_collections: Any,
    zero_debias: bool,
    batch_weights: Any,
    *,
    composed: bool,
) -> _Path:
    rank = inputs.shape.rank
    special = zero_debias or updates_collections != v1.GraphKeys.UPDATE_OPS
    plain = fused is not False and batch_weights is None and not composed
    if plain and rank in (2, 4) and (special or rank == 2) and inputs.dtype != tf.float64:
        return _Path(core=False, unbiased=True, flat=rank == 2)
    if batch_weights is not None or special:
        return _Path(core=False, unbiased=False, flat=False)
    unbiased = fused is not False and takes_fused(rank, inputs.dtype.name, axis, composed)
    return _Path(core=True, unbiased=unbiased, flat=False)


def _check(data_format: Any, is_training: Any, reuse: Any, scope: Any, activation_fn: Any) -> None:
    if data_format not in DATA_FORMATS:
        raise ValueError(
            f"batch_norm: data_format has to be either NCHW or NHWC; got {data_format!r}."
        )
    if is_training is None:
        raise ValueError(
            "batch_norm: is_training must be a bool, 0, 1 or a boolean scalar tensor; got None."
        )
    if reuse is True and scope is None:
        raise ValueError(
            "batch_norm: scope must be given with reuse=True; got None. Name the scope whose "
            "variables are meant."
        )
    if activation_fn is not None and not callable(activation_fn):
        raise TypeError(
            f"batch_norm: activation_fn must be a function or None; got {activation_fn!r}."
        )


def _check_mappings(**arguments: Any) -> None:
    for name, given in arguments.items():
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(
                f"batch_norm: {name} must be a dictionary by the names of the variables or None; "
                f"got {given!r}."
            )


def _is_relu(function: Any) -> bool:
    return function is not None and (function is tf.nn.relu or function is v1.nn.relu)


def _vectors(
    options: Options,
    inputs: Any,
    path: _Path,
    center: bool,
    scale: bool,
    dtype: tf.DType,
    trainable: bool,
    initializers: Mapping[str, Any],
    regularizers: Mapping[str, Any],
    collections: Any,
) -> _variables.Vectors:
    """The variables; contrib's own code made beta before gamma, the layer gamma before beta."""
    axes = _variables.known_axes(options, inputs.shape)
    zeros, ones = v1.zeros_initializer(), v1.ones_initializer()
    gamma = [Parameter("gamma", initializers.get("gamma", ones), regularizers.get("gamma"))]
    beta = [Parameter("beta", initializers.get("beta", zeros), regularizers.get("beta"))]
    gamma, beta = gamma if scale else [], beta if center else []
    vectors = _variables.create(
        gamma + beta if path.core else beta + gamma,
        initializers.get("moving_mean", zeros),
        initializers.get("moving_variance", ones),
        renorm=options.renorm,
        shape=_variables.vector_shape(inputs.shape.as_list(), axes, options),
        dtype=dtype,
        trainable=trainable,
        collections=lambda name: of_variables(collections, name),
    )
    if options.zero_debias:
        own = of_variables({}, "biased")
        vectors.state.update(_variables.create_debiasing(vectors, dtype, own))
    return vectors


def _weights(inputs: Any, batch_weights: Any, training: Any, owner: str) -> Any:
    """The weights, of a shape that is checked: `[batch]`, also at run time (D47)."""
    if batch_weights is None or training is False:
        return None
    weights = tf.convert_to_tensor(batch_weights)
    message = (
        f"{owner}: batch_weights must have the shape [batch]; got the shape "
        f"{_printed(weights.shape)} for inputs of shape {_printed(inputs.shape)}. Give one weight "
        "per sample."
    )
    if not inputs.shape[:1].is_compatible_with(weights.shape):
        raise ValueError(message)
    if weights.shape.is_fully_defined() and inputs.shape[:1].is_fully_defined():
        return weights
    fits = tf.logical_and(
        tf.equal(tf.rank(weights), 1), tf.equal(tf.size(weights), tf.shape(inputs)[0])
    )
    weights = backend.check(fits, ValueError, message, weights)
    weights.set_shape(inputs.shape[:1])
    return weights


def _printed(shape: tf.TensorShape) -> Any:
    return "unknown" if shape.rank is None else tuple(shape.as_list())
