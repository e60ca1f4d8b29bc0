"""Probes of what is remembered, how exact it is, and where it runs.

Each returns True, False, a word, a number, or None where the question makes no sense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.features.engines import Keras, Missing, Torch, channels_axis
from benchmarks.features.truth import EPSILON, data, moments, normalized, same, to_numpy


def remembered(e: Any, shape: tuple[int, ...], **options: Any) -> str:
    x = data(*shape, mean=0.0)
    axes = tuple(range(len(shape) - 1)) if channels_axis(e) == -1 else (0, *range(2, len(shape)))
    layer = e.make(x.shape, **options)
    e.train(layer, x)
    variance, count = (
        moments(x, None, axes)[1].reshape(-1),
        x.size // moments(x, None, axes)[0].size,
    )
    got = 2 * e.statistics(layer)[1] - 1
    if same(got, variance, 1e-4):
        return "biased"
    return "unbiased" if same(got, variance * count / (count - 1), 1e-4) else "neither"


def variance_rank_2(e: Any) -> str:
    return remembered(e, (5, 3))


def variance_rank_4(e: Any) -> str:
    return remembered(e, (2, 3, 2, 3))


def variance_choice(e: Any) -> bool:
    options = {"unbiased_moving_variance": True}
    return remembered(e, (5, 3), **options) == "unbiased" and remembered(e, (5, 3)) == "biased"


def after(e: Any, shape: tuple[int, ...], spoil: Callable[[Any], None]) -> bool:
    """Whether a bad batch between good ones leaves the statistics as they were."""
    layer = e.make(shape)
    e.train(layer, data(*shape))
    before = e.statistics(layer)
    spoil(layer)
    got = e.statistics(layer)
    return all(np.array_equal(one, other) for one, other in zip(before, got, strict=True))


def nan_batch(e: Any) -> bool:
    def spoil(layer: Any) -> None:
        x = data(8, 1)
        x[3] = np.nan
        e.train(layer, x)

    return after(e, (8, 1), spoil)


def empty_batch(e: Any) -> bool:
    return after(e, (8, 3), lambda layer: e.train(layer, np.zeros((0, 3), "float32")))


def all_masked(e: Any) -> bool:
    mask = np.zeros(8, bool)
    return after(e, (8, 3), lambda layer: e.train(layer, data(8, 3), mask=mask))


def offset_error(e: Any, mean: float, *, compile: bool = False) -> float:
    """The largest |y - y in float64| over 32 channels of standard deviation 1."""
    x = data(64, 32, 8, 8, mean=mean) if isinstance(e, Torch) else data(64, 8, 8, 32, mean=mean)
    axes = (0, 2, 3) if isinstance(e, Torch) else (0, 1, 2)
    layer = e.make(x.shape)
    y = e.compiled(layer, x) if compile else e.train(layer, x)
    return float(np.abs(y - normalized(x, axes)).max())


def second_derivatives(e: Any) -> float:
    """The relative error of a Hessian-vector product, the worst of rank 2 and rank 4."""
    return max(_hessian_error(e, shape) for shape in ((7, 3), (3, 3, 2, 3)))


def _hessian_error(e: Any, shape: tuple[int, ...]) -> float:
    x, g, v = data(*shape), data(*shape), data(*shape, mean=0.0)
    channels_first = isinstance(e, Torch) and len(shape) == 4
    axes = (0, 2, 3) if channels_first else tuple(range(len(shape) - 1))

    def gradient(x: np.ndarray) -> np.ndarray:  # of sum(g * y^3)
        mean, variance = moments(x, None, axes)
        k = 1 / np.sqrt(variance + EPSILON)
        y = (x - mean) * k
        q = 3 * g * y**2
        across = {"axis": axes, "keepdims": True}
        return k * (q - q.mean(**across) - y * (q * y).mean(**across))

    step, wide = 1e-5, x.astype("float64")
    expected = (gradient(wide + step * v) - gradient(wide - step * v)) / (2 * step)
    function = e.function(e.make(shape))
    if e.backend == "tensorflow":
        tf = e.tf
        tx = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(tx)
            with tf.GradientTape() as inner:
                inner.watch(tx)
                loss = tf.reduce_sum(g * function(tx) ** 3)
            product = tf.reduce_sum(inner.gradient(loss, tx) * v)
        got = to_numpy(outer.gradient(product, tx))
    elif e.backend == "jax":
        import jax

        first = jax.grad(lambda x: (g * function(x) ** 3).sum())
        got = to_numpy(jax.grad(lambda x: (first(x) * v).sum())(e.tensor(x)))
    else:
        import torch

        tx = torch.tensor(x, requires_grad=True)
        loss = (torch.tensor(g) * function(tx) ** 3).sum()
        (first,) = torch.autograd.grad(loss, tx, create_graph=True)
        (second,) = torch.autograd.grad((first * torch.tensor(v)).sum(), tx)
        got = to_numpy(second)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def unknown_sizes(e: Any) -> bool | None:
    """Batch and spatial sizes left open in a TensorFlow graph."""
    if e.backend != "tensorflow":
        return None
    layer = e.make((None, None, None, 3))
    tf = e.tf
    signature = [tf.TensorSpec([None, None, None, 3])]
    run = tf.function(lambda x: layer(x, training=True), input_signature=signature)
    xs = data(4, 5, 2, 3), data(3, 1, 7, 3)
    return all(same(to_numpy(run(tf.constant(x))), normalized(x, (0, 1, 2))) for x in xs)


def tensor_training(e: Any) -> bool:
    """`training` that is known only at run time, in a compiled function."""
    if not isinstance(e, Keras):
        raise Missing("no tensor as training")
    x, layer = data(8, 3), e.make((8, 3))
    if e.backend == "tensorflow":
        run = e.tf.function(lambda x, training: layer(x, training=training))
        ys = [run(x, e.tf.constant(training)) for training in (False, True)]
    elif e.backend == "jax":
        import jax

        held = [v.value for v in layer.trainable_variables]
        free = [v.value for v in layer.non_trainable_variables]
        run = jax.jit(lambda x, training: layer.stateless_call(held, free, x, training=training)[0])
        ys = [run(x, training) for training in (False, True)]
    else:
        import torch

        run = torch.compile(lambda x, training: layer(x, training=training), fullgraph=True)
        ys = [run(torch.tensor(x), torch.tensor(training)) for training in (False, True)]
    expected = x / np.sqrt(1 + EPSILON), normalized(x, (0,))
    return all(same(to_numpy(y), one) for y, one in zip(ys, expected, strict=True))


def wide_statistics(e: Any) -> bool:
    """A float16 layer keeps a moving mean that float16 cannot hold."""
    x = data(64, 3, mean=100.0).astype("float16")
    if isinstance(e, Torch):
        layer = e.make(x.shape).half()
    else:
        layer = e.make(x.shape, dtype="float16")
    for _ in range(2):
        e.train(layer, x)
    return same(e.statistics(layer)[0], 0.75 * x.astype("float64").mean(0), 2e-3)


def checkpointed(e: Any) -> bool | None:
    """Statistics move once where a forward pass is computed again in the backward pass."""
    x = data(8, 3, mean=4.0)
    layer = e.make(x.shape)
    if e.backend == "tensorflow":
        tf = e.tf
        tx = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(tx)
            y = tf.recompute_grad(lambda one: layer(one, training=True))(tx)
        tape.gradient(y, tx)
    elif e.backend == "torch":
        import torch
        from torch.utils.checkpoint import checkpoint

        tx = torch.tensor(x, requires_grad=True)
        checkpoint(e.function(layer), tx, use_reentrant=False).sum().backward()
    else:
        return None  # state is a result there, and returned once
    return same(e.statistics(layer)[0], 0.5 * x.astype("float64").mean(0))


def fused(e: Any) -> bool:
    """Whether plain training calls one batch-normalization kernel of the framework or of ours."""
    shape = (2, 3, 2, 3)
    x = e.tensor(data(*shape))
    if e.ours:
        e.make(shape, fused=True)(x, training=True)
        return True
    layer = e.make(shape)
    if e.backend == "tensorflow":
        run = e.tf.function(lambda x: layer(x, training=True))
        graph = run.get_concrete_function(x).graph
        return any("BatchNorm" in op.type for op in graph.get_operations())
    if e.backend == "jax":
        import jax

        text = jax.jit(e.function(layer)).lower(x).as_text()
        return "batch_norm_training" in text or "custom_call" in text
    import torch

    with torch.profiler.profile() as profile:
        e.function(layer)(x)
    return any("native_batch_norm" in one.key for one in profile.key_averages())
