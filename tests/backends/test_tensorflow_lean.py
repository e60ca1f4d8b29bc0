"""TensorFlow's derivatives: what they keep of the forward pass, and second ones inside loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import batchnorm
import lean
import reference

SHAPE = (4, 9, 5)
X = np.random.default_rng(0).normal(1.0, 2.0, (3, *SHAPE[1:]))
GAMMA = np.array([1.0, 2.0, 0.5, -1.0, 3.0])
PASSED_ON = ("Identity", "StopGradient", "Reshape")


def normalized(x: tf.Tensor, **options: Any) -> tf.Tensor:
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
    parameters = {"gamma": tf.constant(GAMMA, dtype), "beta": tf.zeros(5, dtype)}
    state = {"moving_mean": tf.zeros(5, dtype), "moving_variance": tf.ones(5, dtype)}
    return batchnorm.batch_norm(x, parameters, state, training=True, **options)[0]


def source(tensor: tf.Tensor) -> tf.Tensor:
    """What a tensor is in memory, where it was only passed on."""
    while tensor.op.type in (*PASSED_ON, "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return tensor


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_gradient_adds_up_in_short_rows(dtype: str) -> None:
    """Values of 16 bits, less their average, all round to the same side: 1024 of them by 5e-4."""
    off = []
    for seed in range(20):
        x, dy = np.random.default_rng(seed).normal(size=(2, 16, 64, 2)).astype(dtype)
        parameters, state = batchnorm.init(tf.constant(x))
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            y, _ = batchnorm.batch_norm(
                tf.constant(x), parameters, state, training=True, fused=False
            )
        beta = tape.gradient(y, parameters, tf.constant(dy))["beta"]
        off.append(np.abs(beta - dy.astype("float64").sum((0, 1))).max())
    assert max(off) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 32}], ids=["plain", "ghost"])
def test_the_backward_pass_reads_x_and_vectors_of_the_forward_pass(
    dtype: str, options: dict[str, Any]
) -> None:
    shape = (64, *SHAPE[1:])
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(dtype, shape)
        y = normalized(x, fused=False, **options)
        forward = set(graph.get_operations())
        tf.gradients(y, x, tf.ones_like(y))
        later = [one for one in graph.get_operations() if one not in forward]
        read = {source(one).ref() for op in later for one in op.inputs if one.op in forward}
    read = {one for one in read if one.deref().op in forward}
    sizes = [one.deref().shape.num_elements() * one.deref().dtype.size for one in read]
    own = int(np.prod(shape)) * tf.as_dtype(dtype).size
    assert own <= sum(sizes) <= 1.15 * own


# As in docs/performance.md: a training step's forward, its backward, inference.
LIMITS = {
    "plain": (56, 36, 3),
    "relu": (57, 40, 4),
    "renorm": (94, 44, 3),
    "weights": (104, 56, 12),
    "ghost": (72, 38, 3),
}
FREE = (*PASSED_ON, "IdentityN", "Const", "Placeholder", "ExpandDims", "Squeeze", "Shape",
        "BroadcastTo", "Fill", "ZerosLike", "OnesLike", "NoOp")  # fmt: skip


@pytest.mark.parametrize("mode", list(LIMITS))
def test_every_mode_is_a_few_operations(mode: str) -> None:
    """Of a graph, beside views and constants."""
    options, limits = lean.MODES[mode], LIMITS[mode]
    x = tf.ones((lean.SAMPLES, 14, 14, 16))
    parameters, state = batchnorm.init(x, renorm="renorm" in options)

    def forward(x: tf.Tensor, training: bool = True) -> Any:
        return batchnorm.batch_norm(x, parameters, state, training=training, fused=False, **options)

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, parameters))
            y, new = forward(x)
        return new, tape.gradient(y, (x, parameters), tf.ones_like(y))

    def counted(function: Callable[..., Any], *others: Any) -> int:
        spec = tf.TensorSpec(x.shape, x.dtype)
        graph = tf.function(function).get_concrete_function(spec, *others).graph
        return sum(one.type not in FREE for one in graph.get_operations())

    there = counted(forward)
    found = (there, counted(step) - there, counted(forward, False))
    assert all(number <= limit for number, limit in zip(found, limits, strict=True)), found


def penalty(x: tf.Tensor, fused: bool | None) -> tf.Tensor:
    """The square of the gradient of sum(y^3), as in a gradient penalty or MAML."""
    if tf.executing_eagerly() or tf.inside_function():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(normalized(x, fused=fused) ** 3)
        return tf.reduce_sum(tape.gradient(loss, x) ** 2)
    (slope,) = tf.gradients(tf.reduce_sum(normalized(x, fused=fused) ** 3), x)
    return tf.reduce_sum(slope**2)


def mapped(xs: tf.Tensor, fused: bool | None) -> tf.Tensor:
    return tf.reduce_sum(tf.map_fn(lambda x: penalty(x, fused), xs))


def looped(xs: tf.Tensor, fused: bool | None) -> tf.Tensor:
    def body(i: tf.Tensor, total: tf.Tensor) -> Any:
        return i + 1, total + penalty(xs[i], fused)

    return tf.while_loop(lambda i, _: i < 3, body, [0, tf.constant(0.0, tf.float64)])[1]


def expected_along(direction: np.ndarray) -> float:
    """The derivative of the penalties along a direction, by finite differences of the reference."""
    parameters = {"gamma": GAMMA, "beta": np.zeros(5)}
    state = {"moving_mean": np.zeros(5), "moving_variance": np.ones(5)}

    def value(x: np.ndarray) -> float:
        total = 0.0
        for one in x:
            y = reference.batch_norm(one, parameters, state, training=True).y
            of = reference.batch_norm(one, parameters, state, training=True, dy=3 * y**2)
            total += (of.dx**2).sum()
        return total

    return (value(X + 1e-5 * direction) - value(X - 1e-5 * direction)) / 2e-5


@contextmanager
def control_flow(version: int) -> Iterator[None]:
    switch = {1: tf.compat.v1.disable_control_flow_v2, 2: tf.compat.v1.enable_control_flow_v2}
    switch[version]()
    try:
        yield
    finally:
        switch[2]()


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("loop", [mapped, looped])
@pytest.mark.parametrize("where", ["function", "graph, control flow 1", "graph, control flow 2"])
def test_second_derivatives_inside_loops_are_exact(
    where: str, loop: Callable[..., tf.Tensor], fused: bool | None
) -> None:
    direction = np.random.default_rng(1).normal(size=X.shape)
    if where == "function":

        @tf.function
        def slope(xs: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(xs)
                total = loop(xs, fused)
            return tape.gradient(total, xs)

        got = slope(tf.constant(X)).numpy()
    else:
        with control_flow(int(where[-1])), tf.Graph().as_default():
            xs = tf.compat.v1.placeholder(tf.float64, X.shape)
            (found,) = tf.gradients(loop(xs, fused), xs)
            with tf.compat.v1.Session() as session:
                got = session.run(found, {xs: X})
    expected = expected_along(direction)
    assert (got * direction).sum() == pytest.approx(expected, rel=1e-6)
