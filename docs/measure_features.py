"""Measures the feature table of README.md: `python docs/measure_features.py [--reasons]`.

Needs TensorFlow, JAX, PyTorch, Keras, flax and tf_keras. Every engine runs in its own process. A
cell is "yes" only where the result agrees with the few lines of NumPy here; "no" where the engine
has no such option, raises, or is wrong; `--reasons` says which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

ENGINES = {
    "batchnorm": ("ours-tensorflow", "ours-jax", "ours-torch"),
    "Keras": ("keras-tensorflow", "keras-jax", "keras-torch"),
    "torch": ("torch",),
    "flax": ("flax",),
    "tf_keras": ("tf_keras",),
}
EPSILON = 1e-3
RNG = np.random.default_rng(0)


class Missing(Exception):
    """The engine has no such option."""


# The engines: make(options) -> layer, then train(layer, x), statistics(layer) and so on.


class Keras:
    """Any layer with the surface of Keras: ours, Keras 3's, tf_keras's."""

    def __init__(self, name: str) -> None:
        self.ours = name.startswith("ours")
        self.backend = "tensorflow" if name == "tf_keras" else name.partition("-")[2]
        if self.backend == "tensorflow":
            import tensorflow as tf

            cpu = tf.config.list_physical_devices("CPU")[0]
            one = tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(cpu, [one, one])  # for two replicas
            self.tf = tf
        if name == "tf_keras":
            import tf_keras as keras
        else:
            import keras
        self.layer = keras.layers.BatchNormalization
        self.version = keras.__version__
        if self.ours:
            import batchnorm
            from batchnorm.keras import BatchNormalization

            self.layer, self.version = BatchNormalization, batchnorm.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        try:
            layer = self.layer(**{"momentum": 0.5, "epsilon": EPSILON, **options})
        except (TypeError, ValueError) as error:
            raise Missing(str(error)) from error
        layer.build(shape)
        return layer

    def tensor(self, x: Any) -> Any:
        if self.backend == "tensorflow":
            return self.tf.constant(x)
        if self.backend == "jax":
            import jax.numpy as jnp

            return jnp.asarray(x)
        import torch

        return torch.as_tensor(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        call = {name: self.tensor(value) for name, value in call.items()}
        return to_numpy(layer(self.tensor(x), training=True, **call))

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return to_numpy(layer(self.tensor(x), training=False))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        return to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.ours:
            return self.train(layer, x, batch_weights=weights)
        if x.ndim == 2:  # the nearest thing: a float mask
            return self.train(layer, x, mask=weights)
        raise Missing("no weights")

    def function(self, layer: Any) -> Callable[[Any], Any]:
        """x -> y in training, without a side effect that a derivative could trip over."""
        if self.backend != "jax":
            return lambda x: layer(x, training=True)
        held = [v.value for v in layer.trainable_variables]
        free = [v.value for v in layer.non_trainable_variables]
        return lambda x: layer.stateless_call(held, free, x, training=True)[0]

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled(self.backend, self.function(layer), self.tensor(x))


class Torch:
    """torch.nn.BatchNorm1d and 2d."""

    backend = "torch"
    ours = False

    def __init__(self, name: str) -> None:
        import torch

        self.torch = torch
        self.version = torch.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        if options.pop("axis", 1) != 1 or options:
            raise Missing(f"no {options}")
        kind = self.torch.nn.BatchNorm2d if len(shape) == 4 else self.torch.nn.BatchNorm1d
        return kind(shape[1], eps=EPSILON, momentum=0.5)

    def tensor(self, x: Any) -> Any:
        return self.torch.as_tensor(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        if call:
            raise Missing(f"no {list(call)}")
        return to_numpy(layer.train()(self.tensor(x)))

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return to_numpy(layer.eval()(self.tensor(x)))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        return to_numpy(layer.running_mean), to_numpy(layer.running_var)

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        raise Missing("no weights")

    def function(self, layer: Any) -> Callable[[Any], Any]:
        return layer.train()

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled("torch", self.function(layer), self.tensor(x))


class Flax:
    """flax.linen.BatchNorm."""

    backend = "jax"
    ours = False

    def __init__(self, name: str) -> None:
        import flax

        self.version = flax.__version__

    def make(self, shape: tuple[int, ...], **options: Any) -> Any:
        import flax.linen as nn
        import jax

        if missing := set(options) - {"axis", "dtype", "axis_name"}:
            raise Missing(f"no {missing}")
        module = nn.BatchNorm(use_running_average=False, momentum=0.5, epsilon=EPSILON, **options)
        return [module, module.init(jax.random.key(0), np.ones(shape, "float32"))]

    def tensor(self, x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(x)

    def train(self, layer: Any, x: np.ndarray, **call: Any) -> np.ndarray:
        module, variables = layer
        if "mask" in call:  # flax broadcasts it from the right
            axis = module.axis
            call = {"mask": self.tensor(np.expand_dims(call["mask"], axis))}
        y, new = module.apply(variables, self.tensor(x), mutable=["batch_stats"], **call)
        layer[1] = {**variables, **new}
        return to_numpy(y)

    def infer(self, layer: Any, x: np.ndarray) -> np.ndarray:
        module, variables = layer
        return to_numpy(module.apply(variables, self.tensor(x), use_running_average=True))

    def statistics(self, layer: Any) -> tuple[np.ndarray, np.ndarray]:
        kept = layer[1]["batch_stats"]
        return to_numpy(kept["mean"]), to_numpy(kept["var"])

    def weighted(self, layer: Any, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return self.train(layer, x, mask=weights)

    def function(self, layer: Any) -> Callable[[Any], Any]:
        module, variables = layer
        return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]

    def compiled(self, layer: Any, x: np.ndarray) -> np.ndarray:
        return compiled("jax", self.function(layer), self.tensor(x))


def compiled(backend: str, function: Callable[[Any], Any], x: Any) -> np.ndarray:
    if backend == "tensorflow":
        import tensorflow as tf

        return to_numpy(tf.function(function, jit_compile=True)(x))
    if backend == "jax":
        import jax

        return to_numpy(jax.jit(function)(x))
    import torch

    return to_numpy(torch.compile(function)(x))


def engine(name: str) -> Any:
    return {"torch": Torch, "flax": Flax}.get(name, Keras)(name)


# The truth, in float64.


def to_numpy(x: Any) -> np.ndarray:
    x = getattr(x, "value", x) if type(x).__module__.startswith("keras.") else x
    if hasattr(x, "detach"):
        x = x.detach().float() if str(x.dtype) == "torch.bfloat16" else x.detach()
    return np.asarray(x, "float64")


def moments(x: np.ndarray, weights: Any, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype("float64")
    weights = np.broadcast_to(np.asarray(1.0 if weights is None else weights, "float64"), x.shape)
    total = weights.sum(axes, keepdims=True)
    mean = (weights * x).sum(axes, keepdims=True) / total
    return mean, (weights * (x - mean) ** 2).sum(axes, keepdims=True) / total


def normalized(x: np.ndarray, axes: tuple[int, ...], weights: Any = None) -> np.ndarray:
    mean, variance = moments(x, weights, axes)
    return (x.astype("float64") - mean) / np.sqrt(variance + EPSILON)


def data(*shape: int, mean: float = 1.0) -> np.ndarray:
    return (mean + RNG.standard_normal(shape)).astype("float32")


def same(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-3) -> bool:
    return got.shape == expected.shape and bool(np.all(np.abs(got - expected) <= tolerance))


def channels_axis(e: Any) -> int:
    return 1 if isinstance(e, Torch) else -1


# The rows. Each probe returns True, False, a number, or None where the question makes no sense.


def renorm(e: Any) -> bool:
    layer = e.make((12, 3), renorm=True, renorm_momentum=0.5)
    first, second = data(12, 3, mean=2.0), data(12, 3, mean=3.0)
    y1, y2 = e.train(layer, first), e.train(layer, second)
    mean, variance = moments(first, None, (0,))
    renorm_mean = 0.5 * mean
    renorm_stddev = 0.5 + 0.5 * np.sqrt(variance + EPSILON)
    return same(y1, first.astype("float64")) and same(y2, (second - renorm_mean) / renorm_stddev)


def _ramp(start: float, end: float) -> Callable[[Any], Any]:
    return lambda step: end * step + start * (1 - step)


def scheduled_clipping(e: Any) -> bool:
    """The bounds of r and d change from plain batch normalization to none."""
    x = data(12, 3, mean=2.0)
    for kind in ("function", "variable"):
        step = {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0}
        late = {"rmin": 0.0, "rmax": 1e6, "dmax": 1e6}
        if kind == "variable":
            if e.backend != "tensorflow":
                continue
            held = {key: e.tf.Variable(value) for key, value in step.items()}
            clipping: dict[str, Any] = held
        else:
            clipping = {key: _ramp(value, late[key]) for key, value in step.items()}
        try:
            layer = e.make((12, 3), renorm=True, renorm_clipping=clipping)
            first = e.train(layer, x)
            if kind == "variable":
                for key, variable in held.items():
                    variable.assign(late[key])
            for name, value in (("renorm_mean", 0.0), ("renorm_stddev", 1.0)):
                getattr(layer, name).assign(np.full(3, value, "float32"))
            if same(first, normalized(x, (0,))) and same(e.train(layer, x), x.astype("float64")):
                return True
        except Exception as error:
            print(f"  {kind}: {error}", file=sys.stderr)
    return False


def ghost_batches(e: Any) -> bool:
    x = data(12, 3)
    y = e.train(e.make(x.shape, virtual_batch_size=4), x)
    expected = np.empty(x.shape)
    for j in range(3):
        expected[j::3] = normalized(x[j::3], (0,))
    return same(y, expected)


def ghost_renorm(e: Any) -> bool:
    """r and d of each group: unclipped, every group is normalized by the renorm state."""
    x = data(12, 3)
    return same(e.train(e.make(x.shape, virtual_batch_size=4, renorm=True), x), x.astype("float64"))


def boolean_mask(e: Any) -> bool:
    x, mask = data(6, 5, 3), RNG.random((6, 5)) < 0.6
    y = e.train(e.make(x.shape), x, mask=mask)
    return same(y[mask], normalized(x, (0, 1), mask[..., None])[mask])


def channels_first_mask(e: Any) -> bool:
    x, mask = data(6, 3, 4, 5), RNG.random((6, 4, 5)) < 0.6
    y = e.train(e.make(x.shape, axis=1), x, mask=mask)
    expected = normalized(x, (0, 2, 3), mask[:, None])
    return same(np.moveaxis(y, 1, -1)[mask], np.moveaxis(expected, 1, -1)[mask])


def short_mask(e: Any) -> bool:
    """One value per example for an input of rank 3."""
    x, mask = data(6, 5, 3), np.array([1, 1, 0, 1, 0, 1], bool)
    y = e.train(e.make(x.shape), x, mask=mask)
    return same(y[mask], normalized(x, (0, 1), mask[:, None, None])[mask])


def masked_nan(e: Any) -> bool:
    """A NaN in padding leaves no trace in the statistics."""
    x, mask = data(8, 3), np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    layer, clean = e.make(x.shape), x.copy()
    x[~mask] = np.nan
    e.train(layer, x, mask=mask)
    mean, _ = e.statistics(layer)
    return same(mean, 0.5 * clean[mask].astype("float64").mean(0))


def weights(e: Any) -> bool:
    x, w = data(8, 3), np.array([1, 2, 0, 3, 0.5, 1, 1, 2], "float32")
    return same(e.weighted(e.make(x.shape), x, w), normalized(x, (0,), w[:, None]))


def adjustment(e: Any) -> bool:
    x = data(8, 3)
    scale, bias = np.full((8, 1), 2.0, "float32"), np.arange(8, dtype="float32")[:, None]
    layer = e.make(x.shape, adjustment=lambda shape: (e.tensor(scale), e.tensor(bias)))
    return same(e.train(layer, x), 2 * normalized(x, (0,)) + bias)


def several_axes(e: Any) -> bool:
    x = data(8, 3, 4, 2)
    return same(e.train(e.make(x.shape, axis=[1, 3]), x), normalized(x, (0, 2)), 3e-3)


def zero_debias(e: Any) -> bool:
    x = data(8, 3, mean=5.0)
    layer = e.make(x.shape, zero_debias=True)
    e.train(layer, x)
    return same(e.statistics(layer)[0], x.astype("float64").mean(0))


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


def synchronized(e: Any) -> bool:
    """Two replicas with other data: the output is that of one batch of both."""
    x = data(8, 3)
    expected = normalized(x, (0,))
    if isinstance(e, Flax):
        import jax

        module, variables = e.make((4, 3), axis_name="replicas")
        run = jax.vmap(
            lambda part: module.apply(variables, part, mutable=["batch_stats"])[0],
            axis_name="replicas",
        )
        return same(to_numpy(run(e.tensor(x.reshape(2, 4, 3)))).reshape(8, 3), expected)
    if isinstance(e, Torch):
        distributed = e.torch.distributed  # one process is enough to see that it refuses a CPU
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        layer = e.torch.nn.SyncBatchNorm(3, eps=EPSILON)
        return same(to_numpy(layer(e.tensor(x))), expected)
    if e.backend != "tensorflow":
        e.make(x.shape, synchronized=True)
        raise Missing("accepted, and refused or ignored by more than one replica")
    strategy = e.tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = e.make(x.shape, synchronized=True)
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: e.tensor(x[4 * context.replica_id_in_sync_group :][:4])
    )
    run = e.tf.function(
        lambda part: strategy.run(lambda one: layer(one, training=True), args=(part,))
    )
    ys = strategy.experimental_local_results(run(parts))
    return same(np.concatenate([to_numpy(y) for y in ys]), expected)


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


def checkpointed(e: Any) -> bool:
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


ROWS: dict[str, Callable[[Any], Any]] = {
    "renorm": renorm,
    "clipping that changes over time": scheduled_clipping,
    "ghost batches": ghost_batches,
    "ghost batches with renorm, r and d per group": ghost_renorm,
    "adjustment": adjustment,
    "several axes": several_axes,
    "boolean mask, channels last": boolean_mask,
    "boolean mask, channels first": channels_first_mask,
    "mask with one value per example, rank 3": short_mask,
    "NaN under the mask": masked_nan,
    "weight per example": weights,
    "zero-debias": zero_debias,
    "moving variance, rank 2": variance_rank_2,
    "moving variance, rank 4": variance_rank_4,
    "choice of biased or unbiased": variance_choice,
    "synchronized over two replicas, CPU": synchronized,
    "statistics survive a NaN": nan_batch,
    "statistics survive an empty batch": empty_batch,
    "statistics survive a fully masked batch": all_masked,
    "error of y, mean 1e3": lambda e: offset_error(e, 1e3),
    "error of y, mean 1e4": lambda e: offset_error(e, 1e4),
    "error of y, mean 1e4, compiled": lambda e: offset_error(e, 1e4, compile=True),
    "error of second derivatives": second_derivatives,
    "unknown sizes in a TensorFlow graph": unknown_sizes,
    "`training` as a tensor, compiled": tensor_training,
    "float32 statistics in a float16 layer": wide_statistics,
    "one update under gradient checkpointing": checkpointed,
    "fused kernel": fused,
}


def measure(name: str, reasons: bool) -> dict[str, str]:
    global RNG
    e, cells = engine(name), {"version": ""}
    cells["version"] = str(e.version)
    for row, probe in ROWS.items():
        RNG = np.random.default_rng(0)
        reason = ""
        try:
            result = probe(e)
        except Exception as error:
            result, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
        cells[row] = _word(result)
        if reasons and cells[row] == "no":
            print(f"{name}: {row}: {reason or 'wrong'}", file=sys.stderr, flush=True)
    return cells


def _word(result: Any) -> str:
    if result is None:
        return "-"
    if isinstance(result, bool):
        return "yes" if result else "no"
    if isinstance(result, str):
        return result
    if np.isnan(result):
        return "NaN"
    return f"{result:.0e}" if result < 1 else f"{result:.3g}"


def _cell(answers: list[str]) -> str:
    if len(set(answers) - {"-"}) <= 1:
        return next((one for one in answers if one != "-"), "-")
    return ", ".join(
        f"{short} {one}" for short, one in zip(("TF", "JAX", "torch"), answers, strict=True)
    )


def main() -> None:
    reasons = "--reasons" in sys.argv
    if "--engine" in sys.argv:
        print(json.dumps(measure(sys.argv[-1], reasons)))
        return
    measured = {}
    for name in (name for names in ENGINES.values() for name in names):
        backend = "tensorflow" if name == "tf_keras" else name.partition("-")[2]
        environment = {**os.environ, "KERAS_BACKEND": backend or "jax"}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, *sys.argv[1:], "--engine", name]
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            stderr=None if reasons else subprocess.DEVNULL,
        )
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    heads = [f"{title} {measured[names[0]]['version']}" for title, names in ENGINES.items()]
    print("| | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for row in ROWS:
        cells = [_cell([measured[name][row] for name in names]) for names in ENGINES.values()]
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
