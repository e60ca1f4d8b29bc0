"""The kernels with their derivatives, which are registered with TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm.backends.derivative import Slopes
from batchnorm.backends.fused import Sizes, Vectors, exact_backward
from batchnorm.backends.tensorflow import operations
from batchnorm.backends.tensorflow.lean import derived, second
from batchnorm.backends.tensorflow.operations import dtype, reshape, shape
from batchnorm.backends.tensorflow.place import UNAVAILABLE
from batchnorm.backends.tensorflow.replicas import Replicas, all_reduce

if UNAVAILABLE is None:
    from batchnorm.backends.tensorflow import kernels


def moments(x: tf.Tensor, sizes: Sizes, weights: tf.Tensor | None) -> Any:
    """Mean, remainder, variance and count: constants, whose derivative `standardize` has."""
    return kernels.moments(tf.stop_gradient(reshape(x, sizes)), weights)


def forward(
    x: tf.Tensor,
    sizes: Sizes,
    weights: tf.Tensor | None,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    epsilon: float,
    activation: int,
    residual: tf.Tensor | None = None,
) -> Any:
    """y, then what `moments` returns."""
    laid_out = reshape(x, sizes)
    residual = None if residual is None else reshape(residual, sizes)
    operands = (laid_out, weights, scale, offset, epsilon, activation)
    y, *measured = kernels.forward(*operands, residual)
    return reshape(y, shape(x)), *measured


def standardize(
    x: tf.Tensor,
    sizes: Sizes,
    weights: tf.Tensor | None,
    given: Vectors,
    epsilon: float,
    activation: int,
    frozen: bool,
    replicas: Replicas | None,
    residual: tf.Tensor | None = None,
) -> tf.Tensor:
    """y; with `replicas`, the moments came from x on all of them, and there is no residual."""
    laid_out = reshape(x, sizes)
    if replicas is not None:
        y = _standardize_over(replicas, laid_out, weights, given, epsilon, activation)
    else:
        residual = None if residual is None else reshape(residual, sizes)
        y = kernels.standardize(laid_out, weights, given, epsilon, activation, frozen, residual)
    return reshape(y, shape(x))


def remember(
    state: Mapping[str, tf.Tensor],
    measured: Moments,
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, tf.Tensor] | None:
    """The plain moving averages after a step, by one kernel; None where it does not hold them."""
    held = {name: dtype(measured.mean) for name in ("moving_mean", "moving_variance")}
    held |= {name: "int32" for name in ("skipped_updates", "num_updates") if name in state}
    if any(dtype(state[name]) != one for name, one in held.items()):
        return None
    return kernels.remember(measured, state, momentum, unbiased, propagate)


def _standardize_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    x, weights, *given, epsilon = op.inputs
    dx, sum_dy, sum_dy_xh = kernels.backward(
        x,
        dy,
        weights,
        *given,
        epsilon,
        activation=op.get_attr("activation"),
        frozen=op.get_attr("frozen"),
    )
    *_, scale, offset, _ = given
    d_scale, d_offset = _present(scale, sum_dy_xh), _present(offset, sum_dy)
    return [dx, None, None, None, None, None, d_scale, d_offset, None, None]


def _forward_gradient(op: Any, dy: tf.Tensor, *_: Any) -> list[tf.Tensor | None]:
    x, weights, scale, offset, epsilon = op.inputs
    _, mean, remainder, variance, count = op.outputs
    live = kernels.absent(mean.dtype)  # all of them
    operands = (x, dy, weights, mean, remainder, variance, count, scale, offset, live, epsilon)
    dx, sum_dy, sum_dy_xh = kernels.backward(
        *operands, activation=op.get_attr("activation"), frozen=False
    )
    return [dx, None, _present(scale, sum_dy_xh), _present(offset, sum_dy), None]


def _standardize_add_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    x, _, weights, *given, epsilon = op.inputs
    how = (op.get_attr("activation"), op.get_attr("frozen"))
    operands = (x, dy, op.outputs[0], weights, *given, epsilon)
    dx, d_residual, sum_dy, sum_dy_xh = _backward_add(operands, *how)
    *_, scale, offset, _ = given
    d_scale, d_offset = _present(scale, sum_dy_xh), _present(offset, sum_dy)
    return [dx, d_residual, None, None, None, None, None, d_scale, d_offset, None, None]


def _forward_add_gradient(op: Any, dy: tf.Tensor, *_: Any) -> list[tf.Tensor | None]:
    x, _, weights, scale, offset, epsilon = op.inputs
    y, mean, remainder, variance, count = op.outputs
    live = kernels.absent(mean.dtype)  # all of them
    operands = (x, dy, y, weights, mean, remainder, variance, count, scale, offset, live, epsilon)
    dx, d_residual, sum_dy, sum_dy_xh = _backward_add(operands, op.get_attr("activation"), False)
    return [dx, d_residual, None, _present(scale, sum_dy_xh), _present(offset, sum_dy), None]


def _backward_add(operands: tuple[tf.Tensor, ...], activation: int, frozen: bool) -> Any:
    """By a kernel that reads y where that says something: y is not held elsewhere."""
    if activation:
        return kernels.backward_add(*operands, activation=activation, frozen=frozen)
    x, dy, _, *rest = operands
    dx, *sums = kernels.backward(x, dy, *rest, activation=activation, frozen=frozen)
    return dx, dy, *sums


def _present(vector: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor | None:
    """The gradient `[G, C]` of a vector in the vector's shape; None where it was absent."""
    return None if kernels.is_absent(vector) else _shaped_like(vector, gradient)


def _shaped_like(vector: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    rank = vector.shape.rank
    return gradient if rank == 2 else reshape(gradient, (-1,))


def _standardize_over(
    replicas: Replicas,
    x: tf.Tensor,
    weights: tf.Tensor | None,
    given: Vectors,
    epsilon: float,
    activation: int,
) -> tf.Tensor:
    """`standardize` with the moments of all replicas: its derivative adds two vectors over them."""
    how = (epsilon, activation)

    def forward(x: tf.Tensor, scale: Any, offset: Any) -> tf.Tensor:
        full = given._replace(scale=scale, offset=offset)
        return kernels.standardize(x, weights, full, *how, False)

    def backward(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        full = given._replace(scale=scale, offset=offset)
        sums = kernels.backward_sums(x, dy, weights, full, *how)
        both = all_reduce(tf.concat(sums, 1), replicas)
        dx = kernels.backward_input(x, dy, weights, full, tf.split(both, 2, 1), *how)
        d_scale, d_offset = (
            None if one is None else _shaped_like(one, total)
            for one, total in ((scale, sums[1]), (offset, sums[0]))
        )
        return Slopes(dx, d_scale, d_offset)

    def exact(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        full = given._replace(scale=scale, offset=offset)
        return exact_backward(operations, x, dy, shape(x), weights, full, *how, False, replicas)

    return derived(forward, backward, exact, x, given.scale, given.offset)


def _backward_gradient(op: Any, *upstream: tf.Tensor | None) -> list[tf.Tensor | None]:
    """The derivative of the backward kernel, by differentiating its formula."""
    x, dy, *rest = op.inputs
    dx, sum_dy, sum_dy_xh = upstream
    slopes = Slopes(dx, sum_dy_xh, sum_dy)
    d_x, d_dy, *affine = _second(op, x, dy, rest, slopes, op.get_attr("activation"))
    return [d_x, d_dy, None, None, None, None, None, *affine, None, None]


def _backward_add_gradient(op: Any, *upstream: tf.Tensor | None) -> list[tf.Tensor | None]:
    """The same, where y says what the activation passes on: to the residual too."""
    x, dy, y, *rest = op.inputs
    dx, d_residual, sum_dy, sum_dy_xh = upstream
    slopes, zeros = Slopes(dx, sum_dy_xh, sum_dy), tf.zeros_like(dy)
    d_x, d_passed, *affine = _second(op, x, tf.where(y > 0, dy, zeros), rest, slopes, 0)
    if d_residual is not None:
        d_passed += d_residual
    d_dy = tf.where(y > 0, d_passed, zeros)
    return [d_x, d_dy, None, None, None, None, None, None, *affine, None, None]


def _second(
    op: Any, x: tf.Tensor, dy: tf.Tensor, rest: Any, upstream: Slopes, activation: int
) -> list[tf.Tensor | None]:
    """The derivatives by x, dy, scale and offset."""
    weights, *vectors, epsilon = rest
    given = Vectors(*(None if kernels.is_absent(vector) else vector for vector in vectors))
    weights = None if weights.shape.num_elements() == 0 else tf.expand_dims(weights, 3)
    how = (tf.cast(epsilon, given.mean.dtype), activation, op.get_attr("frozen"))

    def exact(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        full = given._replace(scale=scale, offset=offset)
        return exact_backward(operations, x, dy, shape(x), weights, full, *how)

    return second(exact, (x, dy, given.scale, given.offset), upstream)


if UNAVAILABLE is None:
    tf.RegisterGradient("BatchnormStandardize")(_standardize_gradient)
    tf.RegisterGradient("BatchnormForward")(_forward_gradient)
    tf.RegisterGradient("BatchnormBackward")(_backward_gradient)
    tf.RegisterGradient("BatchnormStandardizeAdd")(_standardize_add_gradient)
    tf.RegisterGradient("BatchnormForwardAdd")(_forward_add_gradient)
    tf.RegisterGradient("BatchnormBackwardAdd")(_backward_add_gradient)
    tf.no_gradient("BatchnormRemember")
