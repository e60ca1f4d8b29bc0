"""Checkpoints of flax continue with ours, and back: by orbax, and by `nnx.update`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

import batchnorm.flax

RNG = np.random.default_rng(4)
X = jnp.asarray(RNG.normal(0, 2, (16, 4)), "float32")
LABELS = jnp.asarray(RNG.integers(0, 3, 16))


class Net(nnx.Module):
    def __init__(self, kind: Any) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = kind(8, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jax.nn.relu(self.norm(self.first(x))))


@nnx.jit
def step(net: Any, optimizer: Any) -> Any:
    def loss(net: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(net(X), LABELS).mean()

    value, slopes = nnx.value_and_grad(loss)(net)
    optimizer.update(net, slopes)
    return value


def trained(net: Any, steps: int) -> list[float]:
    net.train()
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
    return [float(step(net, optimizer)) for _ in range(steps)]


def through_orbax(net: Any, kind: Any, folder: Path) -> Any:
    """The model of another kind that continues with what was saved."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.split(net)[1])
        checkpointer.wait_until_finished()
        graph, like = nnx.split(nnx.eval_shape(lambda: Net(kind)))
        return nnx.merge(graph, checkpointer.restore(folder, like))


def test_a_training_goes_on_in_the_other_kind_and_back(tmp_path: Path) -> None:
    theirs, ours = nnx.BatchNorm, batchnorm.flax.BatchNorm
    alone, mixed = Net(theirs), Net(theirs)
    wanted = trained(alone, 10)
    found = trained(mixed, 2)
    for i, kind in enumerate((ours, theirs, ours)):
        mixed = through_orbax(mixed, kind, tmp_path / str(i))
        assert type(mixed.norm) is kind
        found += trained(mixed, (4, 2, 2)[i])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    mixed.eval()
    alone.eval()
    np.testing.assert_allclose(mixed(X), alone(X), rtol=1e-3, atol=1e-4)


def test_nnx_update_takes_flaxs_state_and_gives_ours() -> None:
    theirs, mine = Net(nnx.BatchNorm), Net(batchnorm.flax.BatchNorm)
    trained(theirs, 2)
    nnx.update(mine, nnx.state(theirs))
    np.testing.assert_array_equal(mine.norm.var[...], theirs.norm.var[...])
    trained(mine, 2)
    nnx.update(theirs, nnx.state(mine))
    np.testing.assert_array_equal(mine.norm.var[...], theirs.norm.var[...])
