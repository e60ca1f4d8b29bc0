"""The kernels as TensorFlow ops, without gradients: BatchnormMoments, -Standardize, ...

x is the view `[A, G, B, C, D]`, weights `[A, G or 1, B, 1, D]` with any size 1 instead, per-channel
vectors `[G, C]`, or `(C,)` for one group, in the statistics' type, count `[G, 1]`; None is absent.

Importing this module loads the ops; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from batchnorm._native.library import KernelsUnavailable, load, path_of
from batchnorm._native.operands import KERNELS
from batchnorm.backends.tensorflow.constants import constant

load()  # its symbols are what the ops call
try:
    _ops = tf.load_op_library(str(path_of("libbatchnorm_tensorflow")))
except (tf.errors.NotFoundError, tf.errors.OpError) as error:
    raise KernelsUnavailable(
        f"The TensorFlow binding cannot be loaded: {error.message}."
    ) from error


_ABSENT = (0, 0, 0)  # a rank that no vector has: one without channels is there


def _statistics_type(x: tf.Tensor) -> tf.DType:
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def absent(dtype: tf.DType) -> tf.Tensor:
    """The operand that stands for None."""
    return constant(tf.zeros, _ABSENT, dtype)


def is_absent(vector: tf.Tensor) -> bool:
    """Whether an operand does."""
    return vector.shape.rank == len(_ABSENT)


def _given(x: tf.Tensor, value: tf.Tensor | None) -> tf.Tensor:
    return absent(_statistics_type(x)) if value is None else value


def _weights(x: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    if weights is None:
        return constant(tf.zeros, (0, 0, 0, 0), _statistics_type(x))
    return tf.cast(tf.squeeze(weights, 3), _statistics_type(x))


def _epsilon(epsilon: Any) -> tf.Tensor:
    if isinstance(epsilon, float):
        return constant(tf.constant, epsilon, tf.float64)
    return tf.convert_to_tensor(epsilon, tf.float64)


def _call(name: str, given: Mapping[str, Any], **how: Any) -> Any:
    """The op of a kernel, of operands by their names; an absent one is None, or not there."""
    x = given["x"]
    operands = {
        one: _weights(x, given.get(one)) if one == "weights" else _given(x, given.get(one))
        for one in KERNELS[name].takes.split()
        if one not in ("sizes", "epsilon", "activation", "frozen")
    }
    if "epsilon" in how:
        how["epsilon"] = _epsilon(how["epsilon"])
    return getattr(_ops, f"batchnorm_{name}")(**operands, **how)


def moments(x: tf.Tensor, weights: tf.Tensor | None) -> Any:
    return _call("moments", {"x": x, "weights": weights})


def standardize(
    x: tf.Tensor,
    weights: tf.Tensor | None,
    given: Any,
    epsilon: float,
    activation: int,
    frozen: bool,
    residual: tf.Tensor | None = None,
) -> tf.Tensor:
    operands = {"x": x, "residual": residual, "weights": weights, **given._asdict()}
    how = {"epsilon": epsilon, "activation": activation, "frozen": frozen}
    return _call("standardize" if residual is None else "standardize_add", operands, **how)


def forward(
    x: tf.Tensor,
    weights: tf.Tensor | None,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    activation: int,
    residual: tf.Tensor | None = None,
) -> Any:
    operands = {"x": x, "residual": residual, "weights": weights, "scale": scale, "offset": offset}
    name = "forward" if residual is None else "forward_add"
    return _call(name, operands, epsilon=epsilon, activation=activation)


def backward_sums(
    x: tf.Tensor,
    dy: tf.Tensor,
    weights: tf.Tensor | None,
    given: Any,
    epsilon: float,
    activation: int,
) -> Any:
    operands = {"x": x, "dy": dy, "weights": weights, **given._asdict()}
    return _call("backward_sums", operands, epsilon=epsilon, activation=activation)


def backward_input(
    x: tf.Tensor,
    dy: tf.Tensor,
    weights: tf.Tensor | None,
    given: Any,
    sums: Any,
    epsilon: float,
    activation: int,
) -> tf.Tensor:
    operands = {"x": x, "dy": dy, "weights": weights, **given._asdict()}
    operands |= dict(zip(("sum_dy", "sum_dy_xh"), sums, strict=True))
    return _call("backward_input", operands, epsilon=epsilon, activation=activation)


def backward(*operands: tf.Tensor, activation: int, frozen: bool) -> Any:
    """Operands as the op has them: x, dy, weights, the seven vectors, epsilon."""
    return _ops.batchnorm_backward(*operands, activation=activation, frozen=frozen)


def backward_add(*operands: tf.Tensor, activation: int, frozen: bool) -> Any:
    """The same with y behind dy; the residual's gradient is behind x's."""
    return _ops.batchnorm_backward_add(*operands, activation=activation, frozen=frozen)


def remember(
    moments: Sequence[tf.Tensor],
    state: Mapping[str, tf.Tensor],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, tf.Tensor]:
    """The moving averages and counters after a step; a counter may be absent."""
    names = ("moving_mean", "moving_variance", "skipped_updates", "num_updates")
    old = (state[name] if name in state else absent(tf.int32) for name in names)
    momentum = constant(tf.constant, momentum, tf.float64)
    new = _ops.batchnorm_remember(*moments, *old, momentum, unbiased, propagate)
    return {name: one for name, one in zip(names, new, strict=True) if name in state}
