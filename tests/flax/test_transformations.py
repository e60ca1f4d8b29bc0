"""Transformations of flax and JAX, of flax's module and of ours: the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import export

import batchnorm.flax
import batchnorm.flax.linen

X = jnp.asarray(np.random.default_rng(2).normal(0, 2, (8, 3)), "float32")


def compare(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert jax.tree.leaves(got)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, wanted)


def stats(module: Any) -> Any:
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


class Net(nnx.Module):
    """A dense layer and a batch normalization."""

    def __init__(self, kind: Any, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.norm = kind(3, momentum=0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.norm(self.dense(x)))


def loss(net: Any, x: Any) -> Any:
    return (net(x) ** 2).sum()


def jitted(kind: Any) -> Any:
    net = Net(kind, nnx.Rngs(0))
    slopes = nnx.jit(nnx.grad(loss), donate_argnums=0)(net, X)
    return nnx.to_pure_dict(slopes), stats(net)


def ensemble(kind: Any) -> Any:
    make = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Net(kind, rngs)))
    nets = make(nnx.Rngs(0))
    y = nnx.vmap(lambda net, x: net(x), in_axes=(0, None))(nets, X)
    return y, stats(nets)


def layers(kind: Any) -> Any:
    make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: Net(kind, rngs)))
    nets = make(nnx.Rngs(0))
    run = nnx.scan(lambda x, net: net(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return run(X, nets), stats(nets)


def rematerialized(kind: Any) -> Any:
    net = Net(kind, nnx.Rngs(0))
    slopes = nnx.grad(lambda net, x: nnx.remat(loss)(net, x))(net, X)
    return nnx.to_pure_dict(slopes), stats(net)


def split(kind: Any) -> Any:
    graph, params, rest = nnx.split(Net(kind, nnx.Rngs(0)), nnx.Param, ...)

    def pure(params: Any, rest: Any) -> Any:
        net = nnx.merge(graph, params, rest, copy=True)  # variables of this trace
        return loss(net, X), stats(net)

    change = jax.jvp(lambda params: pure(params, rest)[0], (params,), (params,))
    return change, jax.jit(pure)(params, rest)


def exported(kind: Any) -> Any:
    net = Net(kind, nnx.Rngs(0))
    net.eval()
    graph, state = nnx.split(net)
    program = export.export(jax.jit(lambda x: nnx.merge(graph, state)(x)))(X)
    return export.deserialize(program.serialize()).call(X)


def over_devices(kind: Any) -> Any:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    whole, parts = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    graph, state = nnx.split(Net(lambda *a, **k: kind(*a, axis_name="batch", **k), nnx.Rngs(0)))

    def step(state: Any, x: Any) -> Any:
        net = nnx.merge(graph, state)
        return net(x), stats(net)

    specs = {"mesh": mesh, "in_specs": (whole, parts), "out_specs": (parts, whole)}
    return jax.jit(jax.shard_map(step, **specs))(state, X)


@pytest.mark.parametrize(
    "function",
    [jitted, ensemble, layers, rematerialized, split, exported, over_devices],
    ids=lambda function: function.__name__,
)
def test_nnx(function: Callable[[Any], Any]) -> None:
    compare(function(batchnorm.flax.BatchNorm), function(nnx.BatchNorm))


def test_a_view_and_eval_choose_what_normalizes() -> None:
    net = Net(batchnorm.flax.BatchNorm, nnx.Rngs(0))
    net.eval()
    before = stats(net)
    y = net(X)
    compare(before, stats(net))
    np.testing.assert_array_equal(nnx.view(net, use_running_average=True)(X), y)
    net.train()
    assert abs(net(X) - y).max() > 0.01


def test_nobody_said_what_normalizes() -> None:
    module = batchnorm.flax.BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_running") as caught:
        module(X)
    assert str(caught.value) == (
        "BatchNorm: use_running_average must be True or False, here or in the constructor; got "
        "None in both. Call train() or eval() on the model, or pass it."
    )


def test_our_modules_are_flaxs() -> None:
    assert isinstance(batchnorm.flax.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.BatchNorm)
    assert isinstance(batchnorm.flax.linen.BatchNorm(), linen.BatchNorm)


def block(kind: Any) -> Any:
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any, _: Any = None) -> Any:
            x = kind(use_running_average=False, name="norm")(linen.Dense(3, name="dense")(x))
            return jnp.tanh(x), None

    return Block


STACKED = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}


def applied(model: Any, x: Any) -> Any:
    """y, the statistics and the slopes of a step."""
    start = model.init(jax.random.key(0), x)

    def loss(params: Any) -> Any:
        (y, _), new = model.apply({**start, "params": params}, x, mutable=["batch_stats"])
        return (y**2).sum(), (y, new)

    return start, jax.grad(loss, has_aux=True)(start["params"])


def linen_scan(kind: Any) -> Any:
    return applied(linen.scan(block(kind), length=3, **STACKED)(), X)


def linen_remat(kind: Any) -> Any:
    return applied(linen.remat(block(kind))(), X)


def linen_vmap_of_replicas(kind: Any) -> Any:
    def named(**options: Any) -> Any:
        return kind(axis_name="batch", **options)

    same = {"variable_axes": {"params": None, "batch_stats": None}, "axis_name": "batch"}
    mapped = linen.vmap(block(named), split_rngs={"params": False}, out_axes=0, **same)
    return applied(mapped(), X.reshape(2, 4, 3))


@pytest.mark.parametrize(
    "function",
    [linen_scan, linen_remat, linen_vmap_of_replicas],
    ids=lambda function: function.__name__,
)
def test_linen(function: Callable[[Any], Any]) -> None:
    compare(function(batchnorm.flax.linen.BatchNorm), function(linen.BatchNorm))


def test_linens_statistics_change_only_where_they_are_mutable() -> None:
    module = batchnorm.flax.linen.BatchNorm()
    start = module.init(jax.random.key(0), X, use_running_average=False)
    assert (start["batch_stats"]["mean"] == 0).all()  # init remembers nothing
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        module.apply(start, X, use_running_average=False)
    module.apply(start, X, use_running_average=True)
