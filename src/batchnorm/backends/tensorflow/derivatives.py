"""The kernels with their derivatives, which are registered with TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm.backends.fused import Sizes, Vectors, recomputed
from batchnorm.backends.tensorflow import operations
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
    names = [name for name in ("scale", "offset") if getattr(given, name) is not None]
    how = (epsilon, activation)

    def named(affine: tuple[tf.Tensor, ...]) -> Vectors:
        return given._replace(**dict(zip(names, affine, strict=True)))

    @tf.custom_gradient
    def function(x: tf.Tensor, *affine: tf.Tensor) -> Any:
        y = kernels.standardize(x, weights, named(affine), *how, False)
        return y, lambda dy: derivative(x, dy, *affine)

    @tf.custom_gradient
    def derivative(x: tf.Tensor, dy: tf.Tensor, *affine: tf.Tensor) -> Any:
        sums = kernels.backward_sums(x, dy, weights, named(affine), *how)
        both = all_reduce(tf.concat(sums, 1), replicas)
        dx = kernels.backward_input(x, dy, weights, named(affine), tf.split(both, 2, 1), *how)
        slopes = dict(zip(("offset", "scale"), sums, strict=True))

        def second(*upstream: tf.Tensor) -> Any:
            """Its derivative, by differentiating the composite path twice."""
            inputs = [x, dy, *affine]
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    sizes = shape(x)
                    y = recomputed(
                        operations, x, sizes, weights, named(affine), *how, False, replicas
                    )
                first = inner.gradient(y, [x, *affine], dy)
                total = tf.add_n(
                    [
                        tf.reduce_sum(tf.cast(u * v, given.mean.dtype))
                        for u, v in zip(upstream, first, strict=True)
                    ]
                )
            return outer.gradient(total, inputs)

        pairs = zip(names, affine, strict=True)
        return [dx, *(_shaped_like(v, slopes[name]) for name, v in pairs)], second

    return function(x, *(getattr(given, name) for name in names))


def _backward_gradient(op: Any, *upstream: tf.Tensor) -> list[tf.Tensor | None]:
    """The derivative of the backward kernel, by differentiating the composite path twice."""
    x, dy, weights, *given, epsilon = op.inputs
    named = Vectors(*(None if kernels.is_absent(vector) else vector for vector in given))
    w = None if weights.shape.num_elements() == 0 else tf.expand_dims(weights, 3)
    scale, offset = (
        fill(named.mean) if vector is None else vector
        for fill, vector in ((tf.ones_like, named.scale), (tf.zeros_like, named.offset))
    )
    eps = tf.cast(epsilon, named.mean.dtype)
    how = (eps, op.get_attr("activation"), op.get_attr("frozen"))
    inputs = [x, dy, scale, offset]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            full = named._replace(scale=scale, offset=offset)
            y = recomputed(operations, x, shape(x), w, full, *how)
        dx, sum_dy_xh, sum_dy = inner.gradient(y, [x, scale, offset], dy)
        total = tf.add_n(
            [
                tf.reduce_sum(tf.cast(u * v, named.mean.dtype))
                for u, v in zip(upstream, (dx, sum_dy, sum_dy_xh), strict=True)
            ]
        )
    d_x, d_dy, d_scale, d_offset = outer.gradient(total, inputs)
    d_scale = None if named.scale is None else d_scale
    d_offset = None if named.offset is None else d_offset
    return [d_x, d_dy, None, None, None, None, None, d_scale, d_offset, None, None]


if UNAVAILABLE is None:
    tf.RegisterGradient("BatchnormStandardize")(_standardize_gradient)
    tf.RegisterGradient("BatchnormForward")(_forward_gradient)
    tf.RegisterGradient("BatchnormBackward")(_backward_gradient)
    tf.no_gradient("BatchnormRemember")
