"""Handwritten digits on several devices of JAX, one batch-norm batch over all of them.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/jax_digits.py
    python examples/jax_digits.py --coordinator HOST:1234 --processes 2 --process 0
                                       # and --process 1, on the other machine

It takes all devices there are.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import batchnorm

TEST = 297  # digits that are kept for testing
RATE, MOMENTUM = 0.1, 0.9
WHOLE, PARTS = PartitionSpec(), PartitionSpec("batch")


def start() -> tuple[Any, Any]:
    """Weights, and what batch normalization remembers."""
    rng = np.random.default_rng(0)
    weights, states = [], []
    for _ in range(3):
        parameters, state = batchnorm.init(jnp.zeros((1, 64)))
        kernel = jnp.asarray(rng.normal(0, 64**-0.5, (64, 64)), "float32")
        weights.append({"kernel": kernel, **parameters})
        states.append(state)
    last = jnp.asarray(rng.normal(0, 64**-0.5, (64, 10)), "float32")
    return (weights, last), states


def network(weights: Any, states: Any, x: Any, training: bool) -> tuple[Any, Any]:
    """Logits and the next state; in training on one device's part of the batch."""
    blocks, last = weights
    new = []
    for block, state in zip(blocks, states, strict=True):
        x, state = batchnorm.batch_norm(
            x @ block["kernel"],
            {"gamma": block["gamma"], "beta": block["beta"]},
            state,
            training=training,
            momentum=0.9,
            synchronized="batch" if training else False,
        )
        x = jax.nn.relu(x)
        new.append(state)
    return x @ last, new


def step(weights: Any, states: Any, speeds: Any, x: Any, labels: Any) -> Any:
    """One step of gradient descent, on one device's part of the batch."""

    def loss(weights: Any) -> tuple[Any, Any]:
        logits, new = network(weights, states, x, training=True)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return jax.lax.pmean(-chosen.mean(), "batch"), new

    # of weights that are the same on all devices: JAX adds the gradients up
    gradients, new = jax.grad(loss, has_aux=True)(weights)
    speeds = jax.tree.map(lambda v, g: MOMENTUM * v + g, speeds, gradients)
    weights = jax.tree.map(lambda w, v: w - RATE * v, weights, speeds)
    return weights, new, speeds


def train(epochs: int, batch: int) -> float:
    """The share of test digits that the trained network knows."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    update = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(WHOLE,) * 3 + (PARTS,) * 2, out_specs=WHOLE)
    )
    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32")  # 0 to 16, as they are: the layers normalize
    weights, states = start()
    speeds = jax.tree.map(jnp.zeros_like, weights)
    rng = np.random.default_rng(1)

    def spread(array: Any) -> Any:
        sharding = NamedSharding(mesh, PARTS)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    for _ in range(epochs):
        order = rng.permutation(len(images) - TEST)
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            weights, states, speeds = update(
                weights, states, speeds, spread(images[chosen]), spread(labels[chosen])
            )
            # With two steps under way on virtual devices, XLA (JAX 0.10.2) has them wait for each
            # other's threads for ever. On real devices leave this out.
            jax.block_until_ready(speeds)
    # every device has all of these; np.asarray takes the copy at hand
    weights, states = jax.tree.map(np.asarray, (weights, states))
    states = jax.tree.map(jnp.asarray, states)
    logits, _ = network(weights, states, jnp.asarray(images[-TEST:]), training=False)
    return float((logits.argmax(1) == labels[-TEST:]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    accuracy = train(arguments.epochs, arguments.batch)
    if arguments.process == 0:
        print(f"{jax.device_count()} replicas, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
