"""The process of `tests/backends/test_tensorflow_replicas.py`: rank, replicas, folder.

MirroredStrategy over logical CPUs of one process. What it pickles: {"modes": {(name, fused):
[result of each replica]}, ...}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf

import batchnorm
import engines
import launcher
import recordings
import replicated
from batchnorm import keras as ours
from batchnorm.backends.tensorflow import replicas as tensorflow_replicas

RANK, REPLICAS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
ENGINE = engines.ENGINES["tensorflow"]
SENT: list[tuple[str, int]] = []  # collectives of all replicas: type, bytes


def counting() -> None:
    function = tensorflow_replicas._sum

    def counted(x: Any) -> Any:
        SENT.append((x.dtype.name, int(tf.size(x)) * x.dtype.size))
        return function(x)

    tensorflow_replicas._sum = counted


def each(strategy: tf.distribute.Strategy, function: Any) -> list[Any]:
    """What the function of a replica's number returns on each replica."""
    results: dict[int, Any] = {}

    def replica() -> None:
        context = tf.distribute.get_replica_context()
        rank = int(tf.get_static_value(context.replica_id_in_sync_group))
        results[rank] = function(rank)

    strategy.run(replica)
    return [results[rank] for rank in sorted(results)]


def modes(strategy: tf.distribute.Strategy) -> dict[Any, Any]:
    results = {}
    for name in replicated.NAMES:
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):
            SENT.clear()
            run = lambda rank: replicated.run(one, ENGINE, rank, fused=fused)  # noqa: B023, E731
            results[name, fused] = each(strategy, run), list(SENT)
    return results


def graph(strategy: tf.distribute.Strategy) -> dict[Any, Any]:
    """A few cases in a tf.function."""
    results = {}
    for name in ("mean 1e4", "ghost, renorm and weights", "unequal ghost"):
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):
            options = {"fused": fused, "synchronized": True, **one.options}
            found = strategy.experimental_local_results(_compiled(strategy, one, options))
            results[name, fused] = [tf.nest.map_structure(ENGINE.numpy, part) for part in found]
    return results


def _compiled(strategy: tf.distribute.Strategy, one: replicated.Case, options: Any) -> Any:
    def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: tf.constant(array) for name, array in arrays.items()}

    @tf.function
    def step(parts: Any) -> Any:
        def replica(x: Any, dy: Any, given: Any) -> Any:
            parameters = tensors(one.parameters)
            with tf.GradientTape() as tape:
                tape.watch([x, parameters])
                y, state = batchnorm.batch_norm(
                    x, parameters, tensors(one.state), **options, **given
                )
                loss = tf.reduce_sum(y * dy)
            dx, slopes = tape.gradient(loss, [x, parameters])
            return {"y": y, "dx": dx, "state": state, **slopes}

        return strategy.run(replica, args=parts)

    def part(array: Any) -> Any:
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(one.part(array, context.replica_id_in_sync_group))
        )

    given = {name: part(array) for name, array in one.given.items()}
    return step((part(one.x), part(one.dy), given))


def second_derivatives(strategy: tf.distribute.Strategy) -> dict[Any, Any]:
    """The gradient of a gradient penalty, which needs every replica's second derivatives."""
    one = replicated.case("channels last", REPLICAS)
    parameters = {name: tf.constant(array, tf.float64) for name, array in one.parameters.items()}

    def penalty(rank: int, fused: bool | None) -> Any:
        x = tf.constant(one.part(one.x, rank), tf.float64)
        _, state = batchnorm.init(x)
        options = {"training": True, "fused": fused, "synchronized": True}
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y, _ = batchnorm.batch_norm(x, parameters, state, **options)
                loss = tf.reduce_sum(y**2 * one.part(one.dy, rank))
            slope = tf.reduce_sum(inner.gradient(loss, x) ** 2)
        return outer.gradient(slope, x).numpy()

    return {
        fused: each(strategy, lambda rank: penalty(rank, fused))  # noqa: B023
        for fused in (False, None)
    }


def golden(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """What our layers make of the recordings of two replicas."""
    found = {}
    for name, layer_of in (
        ("sync_two_replicas", ours.SyncBatchNormalization),
        ("k2_two_replicas_fused", ours.BatchNormalization),
    ):
        (case,) = (
            one for one in recordings.golden_cases("keras_sync", "keras_v2") if one["name"] == name
        )
        recorded = recordings.golden_arrays(case)
        # the originals' fused kernel remembers the unbiased variance
        unbiased = case["fused"]
        with strategy.scope():
            layer = layer_of(momentum=0.9, unbiased_moving_variance=unbiased)
            layer.build(tuple(case["shape"]))
        for vector in ("gamma", "beta"):
            getattr(layer, vector).assign(recorded[vector])
        for statistic in ("moving_mean", "moving_variance"):
            getattr(layer, statistic).assign(recorded[f"state/{statistic}"][0])
        got: dict[str, list[Any]] = {"y": [], "dx": [], "moving_mean": [], "moving_variance": []}
        for x, g in zip(recorded["x"], recorded["g"], strict=True):
            parts = each(strategy, lambda rank: _step(layer, x[rank], g[rank]))  # noqa: B023
            for what, array in zip(("y", "dx"), zip(*parts, strict=True), strict=True):
                got[what].append(np.stack(array))
            for what in ("moving_mean", "moving_variance"):
                got[what].append(getattr(layer, what).numpy())
        got["infer_y"] = np.stack([layer(x, training=False) for x in recorded["infer_x"]])
        found[name] = got
    return found


def _step(layer: Any, x: Any, g: Any) -> Any:
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(y * g)
    return y.numpy(), tape.gradient(loss, x).numpy()


def fitted(strategy: Any) -> list[Any]:
    """The weights of a small model after `fit`, under the strategy or without one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (24, 5)), rng.normal(size=(24, 1))
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.layers.Input((5,)),
                keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(1)),
                ours.SyncBatchNormalization(momentum=0.5),
                keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(2)),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return [np.array(one) for one in model.get_weights()]


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    found = {"graph": graph(strategy), "second": second_derivatives(strategy)}
    if REPLICAS == 2:
        found["golden"] = golden(strategy)
        found["fit"] = fitted(strategy), fitted(tf.distribute.get_strategy())
    counting()
    launcher.keep(FOLDER, RANK, {"modes": modes(strategy), **found})


if __name__ == "__main__":
    main()
