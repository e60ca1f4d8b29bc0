"""Modules on meshes: a sharded step is the step of one device, with hidden axes and explicit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
STEP = """
import flax.linen, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import batchnorm.flax, batchnorm.flax.linen

rng = np.random.default_rng(0)
x, dy = rng.normal(2, 3, (16, 5, 12)).astype("f"), rng.normal(size=(16, 5, 12)).astype("f")

def of_nnx(**options):
    norm = batchnorm.flax.BatchNorm(12, rngs=nnx.Rngs(0), **options)
    graph, params, rest = nnx.split(norm, nnx.Param, ...)
    def step(x, dy, training=True):
        def loss(x, params):
            norm = nnx.merge(graph, params, rest, copy=True)
            y = norm(x, use_running_average=not training)
            return jnp.sum(y * dy), (y, nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)))
        return jax.value_and_grad(loss, has_aux=True)(x, params)
    return step

def of_linen(**options):
    norm = batchnorm.flax.linen.BatchNorm(**options)
    held = norm.init(jax.random.key(0), x, use_running_average=True)
    def step(x, dy, training=True):
        def loss(x):
            how = {"use_running_average": not training, "mutable": ["batch_stats"]}
            y, new = norm.apply(held, x, **how)
            return jnp.sum(y * dy), (y, new)
        return jax.value_and_grad(loss, has_aux=True)(x)
    return step

def check(step, axis_type, spec, training, compiled):
    mesh = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(axis_type,) * 2)
    sharding = NamedSharding(mesh, spec)
    call = lambda x, dy: step(x, dy, training)
    want = call(jnp.asarray(x), jnp.asarray(dy))
    with jax.set_mesh(mesh):
        there = jax.device_put(x, sharding), jax.device_put(dy, sharding)
        got = jax.jit(call)(*there) if compiled else call(*there)
    assert got[0][1][0].sharding.is_equivalent_to(sharding, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-5), got, want)

MODES = ({}, {"renorm": True}, {"activation": "relu"})
"""


@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_a_sharded_step_is_the_step_of_one_device(
    python: Callable[..., str], api: str, axes: str
) -> None:
    python(
        STEP
        + f"""
make, axis_type = of_{api}, AxisType.{axes}
for options in MODES:
    for training in (True, False):
        check(make(**options), axis_type, P("batch"), training, compiled=True)
check(make(), axis_type, P("batch", None, "model"), True, compiled=True)
if axis_type is AxisType.Explicit:
    check(make(), axis_type, P("batch"), True, compiled=False)
""",
        **DEVICES,
    )
