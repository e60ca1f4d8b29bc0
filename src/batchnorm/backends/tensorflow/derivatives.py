"""The kernels with their derivatives, which are registered with TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm.backends.composite import Slopes
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
) -> Any:
    """y, then what `moments` returns."""
    laid_out = reshape(x, sizes)
    y, *measured = kernels.forward(laid_out, weights, scale, offset, epsilon, activation)
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
) -> tf.Tensor:
    """y; with `replicas`, the moments came from x on all of them."""
    laid_out = reshape(x, sizes)
    if replicas is not None:
        y = _standardize_over(replicas, laid_out, weights, given, epsilon, activation)
    else:
        y = kernels.standardize(laid_out, weights, given, epsilon, activation, frozen)
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
    x, dy, weights, *vectors, epsilon = op.inputs
    given = Vectors(*(None if kernels.is_absent(vector) else vector for vector in vectors))
    weights = None if weights.shape.num_elements() == 0 else tf.expand_dims(weights, 3)
    how = (tf.cast(epsilon, given.mean.dtype), op.get_attr("activation"), op.get_attr("frozen"))

    def exact(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        full = given._replace(scale=scale, offset=offset)
        return exact_backward(operations, x, dy, shape(x), weights, full, *how)

    dx, sum_dy, sum_dy_xh = upstream
    at = (x, dy, given.scale, given.offset)
    d_x, d_dy, d_scale, d_offset = second(exact, at, Slopes(dx, sum_dy_xh, sum_dy))
    return [d_x, d_dy, None, None, None, None, None, d_scale, d_offset, None, None]


if UNAVAILABLE is None:
    tf.RegisterGradient("BatchnormStandardize")(_standardize_gradient)
    tf.RegisterGradient("BatchnormForward")(_forward_gradient)
    tf.RegisterGradient("BatchnormBackward")(_backward_gradient)
    tf.no_gradient("BatchnormRemember")
