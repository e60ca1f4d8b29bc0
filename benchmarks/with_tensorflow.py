"""TensorFlow, in tf.function as it is used: what is measured there, and what it has of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import ours
from benchmarks.cases import Case
from benchmarks.ours import EPSILON, GHOST, MOMENTUM, Function, Given

relu = tf.nn.relu


def tensor(array: np.ndarray, dtype: str = "float32") -> tf.Tensor:
    return tf.cast(tf.constant(array), dtype)


parameter = tensor  # gradients are taken of any


def given(case: Case, renorm: bool = False, native: bool = False) -> Given:
    """The tensors of a case."""
    return ours.given(case, tensor, parameter, renorm)


def forward_backward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y, the new state, and the gradients of x, gamma and beta."""
    return _call(tf.function(_step(function), autograph=False), given)


def forward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y, and the state."""
    return _call(tf.function(_without_gradients(function), autograph=False), given)


def _step(function: Function) -> Callable[..., Any]:
    def step(x: Any, dy: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((x, gamma, beta))
            y, *rest = function(x, gamma, beta, state, extra)
        return y, tape.gradient(y, (x, gamma, beta), output_gradients=dy), rest

    return step


def _without_gradients(function: Function) -> Callable[..., Any]:
    return lambda x, dy, gamma, beta, state, extra: function(x, gamma, beta, state, extra)


def _call(function: Callable[..., Any], given: Given) -> Callable[[], Any]:
    x, dy, gamma, beta, state, extra, _ = given
    return lambda: function(x, dy, gamma, beta, state, extra)


# Small calls are eager: there a tf.function costs more than what it is about.
SMALL = (
    lambda function, given: _call(_without_gradients(function), given),
    lambda function, given: _call(_step(function), given),
)


def one_replica(given: Given) -> Function:
    """Ours, synchronized where there is no strategy."""
    return ours.plain(given, synchronized=True)


def peers(case: Case, given: Given, training: bool) -> dict[str, Function]:
    """TensorFlow's fused op, FusedBatchNormV3, with the moving averages beside it."""
    return {"TF fused": _fused(given, training)}


def _fused(given: Given, training: bool) -> Function:
    order = "NCHW" if given.axis == 1 else "NHWC"

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any, Any]:
        old = state["moving_mean"], state["moving_variance"]
        shape = x.shape
        if len(shape) == 2:
            x = tf.reshape(x, (shape[0], 1, 1, shape[1]))
        given = {} if training else {"mean": old[0], "variance": old[1]}
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, gamma, beta, **given, epsilon=EPSILON, data_format=order, is_training=training
        )
        if training:
            pairs = zip(old, (mean, variance), strict=True)
            old = tuple(MOMENTUM * one + (1 - MOMENTUM) * two for one, two in pairs)
        return tf.reshape(y, shape), old

    return function


def original(case: Case, given: Given) -> Function | None:
    """The layer of tf_keras with renorm or ghost batches; None where it has nothing to compare."""
    options: dict[str, dict[str, Any]] = {
        "renorm": {"renorm": True},
        "ghost": {"virtual_batch_size": GHOST},
    }
    if case.variant not in options or case.layout == "first" or case.dtype != "float32":
        return None
    if importlib.util.find_spec("tf_keras") is None:
        return None
    import tf_keras

    layer = tf_keras.layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, **options[case.variant]
    )
    layer.build(given.x.shape)

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        return (layer(x, training=True),)  # its own gamma and beta, watched by its own tape

    return function


def step_of_layer(function: Function, given: Given) -> Callable[[], Any]:
    """`forward_backward` for a layer that holds its variables."""
    x, dy, *_ = given

    @tf.function(autograph=False)
    def step(x: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x, None, None, {}, {})[0]
        return y, tape.gradient(y, (x, *tape.watched_variables()), output_gradients=dy)

    return lambda: step(x, dy)


def small_peers(given: Given, training: bool) -> dict[str, Function]:
    """TensorFlow's operator and its function of two steps, alone: without moving averages."""
    axes = tuple(range(given.x.shape.rank - 1))
    empty = tf.zeros((0,), tf.float32)

    def operator(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        image = tf.reshape(x, (x.shape[0], 1, 1, x.shape[1]))
        old = (empty, empty) if training else (state["moving_mean"], state["moving_variance"])
        out = tf.raw_ops.FusedBatchNormV3(
            x=image, scale=gamma, offset=beta, mean=old[0], variance=old[1],
            epsilon=EPSILON, is_training=training,
        )  # fmt: skip
        return (tf.reshape(out.y, x.shape),)

    def two_steps(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        old = state["moving_mean"], state["moving_variance"]
        mean, variance = tf.nn.moments(x, axes) if training else old
        return (tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON),)

    return {"FusedBatchNormV3": operator, "tf.nn.batch_normalization": two_steps}
