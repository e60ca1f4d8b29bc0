"""Probes of options: each returns True or False; whatever it raises is a "no"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.features.engines import Flax, Missing, Torch
from benchmarks.features.truth import EPSILON, data, moments, normalized, random, same, to_numpy


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
    x, mask = data(6, 5, 3), random.random((6, 5)) < 0.6
    y = e.train(e.make(x.shape), x, mask=mask)
    return same(y[mask], normalized(x, (0, 1), mask[..., None])[mask])


def channels_first_mask(e: Any) -> bool:
    x, mask = data(6, 3, 4, 5), random.random((6, 4, 5)) < 0.6
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
