"""Handwritten digits by a small residual network of flax, over all devices of JAX; checkpointed.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python examples/flax_digits.py
    python examples/flax_digits.py --checkpoint DIRECTORY    # goes on where it was interrupted

The batch is sharded and the step is jitted: statistics are those of the whole batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from batchnorm.flax import BatchNorm

TEST = 297  # digits that are kept for testing


class Block(nnx.Module):
    """Two convolutions beside a shortcut; the first normalization has its ReLU in the kernel."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm = BatchNorm(channels, momentum=0.9, activation="relu", rngs=rngs)
        self.second = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.last = BatchNorm(channels, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.norm(self.first(x))
        return nnx.relu(x + self.last(self.second(inner)))


class ResNet(nnx.Module):
    """8x8 images, as they are, to ten logits."""

    def __init__(self, channels: int, blocks: int, rngs: nnx.Rngs) -> None:
        self.scale = BatchNorm(1, momentum=0.9, rngs=rngs)  # the images are 0 to 16
        self.stem = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(channels, rngs) for _ in range(blocks)])
        self.head = nnx.Linear(16 * channels, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(self.scale(images))
        for block in self.blocks:
            x = block(x)
        x = nnx.avg_pool(x, (2, 2), (2, 2))
        return self.head(x.reshape(len(x), -1))


@nnx.jit(donate_argnums=(0, 1))
def step(model: ResNet, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> Any:
    def loss(model: ResNet) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean()

    value, slopes = nnx.value_and_grad(loss)(model)
    optimizer.update(model, slopes)
    return value


def train(epochs: int, batch: int, checkpoint: Path | None) -> float:
    """The share of test digits that the trained network knows."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    parts = NamedSharding(mesh, PartitionSpec("batch"))
    whole = NamedSharding(mesh, PartitionSpec())
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32")
    model = ResNet(16, 2, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    held = jax.device_put(nnx.state((model, optimizer)), whole)
    keeper = ocp.CheckpointManager(checkpoint.absolute()) if checkpoint else None
    done = 0
    if keeper and keeper.latest_step() is not None:
        done = keeper.latest_step() + 1
        held = keeper.restore(done - 1, args=ocp.args.StandardRestore(held))
    nnx.update((model, optimizer), held)
    for epoch in range(done, epochs):
        order = np.random.default_rng(epoch).permutation(len(images) - TEST)
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            given = (jax.device_put(array[chosen], parts) for array in (images, labels))
            # On virtual devices two steps under way wait for each other (docs/distributed.md).
            jax.block_until_ready(step(model, optimizer, *given))
        if keeper:
            keeper.save(epoch, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
    if keeper:
        keeper.wait_until_finished()
    model.eval()
    logits = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images[-TEST:]))
    return float((np.asarray(logits).argmax(1) == labels[-TEST:]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    accuracy = train(arguments.epochs, arguments.batch, arguments.checkpoint)
    print(f"{jax.device_count()} replicas, test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
