"""Batch normalization of sharded arrays as on GPUs, on four virtual devices of the CPU.

Values and gradients are compared with those of array operations; what ran is printed. In a
`shard_map` that is the GPU's kernels, interpreted. XLA partitions no callback of Python's (JAX
0.10.2 crashes), so a sharded array gets the program that a process with a GPU makes, whose kernels
are chosen where it is lowered: here the CPU's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import batchnorm
import interpreted

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (8, 4, 6)).astype("float32")
DY = RNG.normal(size=X.shape).astype("float32")
MESH = Mesh(np.array(jax.devices()), ("batch",))
BATCH = PartitionSpec("batch")


def step(x: Any, dy: Any, **options: Any) -> Any:
    def loss(x: Any) -> Any:
        parameters, state = batchnorm.init(x, axis=1)
        y, state = batchnorm.batch_norm(x, parameters, state, training=True, axis=1, **options)
        return jnp.sum(y * dy), (y, state["moving_mean"])

    (_, (y, mean)), dx = jax.value_and_grad(loss, has_aux=True)(x)
    return y, dx, mean


def close(got: Any, wanted: Any) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


wanted = step(X, DY, fused=False)
ran = {}
with pytest.MonkeyPatch.context() as patch:
    device = interpreted.module("backends.jax.device")
    patch.setattr(device, "why_not", lambda dtype: None)
    patch.setattr(jax, "default_backend", lambda: "gpu")
    placed = [jax.device_put(one, NamedSharding(MESH, BATCH)) for one in (X, DY)]
    program = jax.jit(step).lower(*placed).compile()
    close(program(*placed), wanted)
    text = program.as_text()
    assert "all-gather" not in text
    ran["sharded"] = sorted(set(re.findall(r'custom_call_target="batchnorm_(\w+)"', text)))
with pytest.MonkeyPatch.context() as patch, interpreted.gpu_kernels_of_jax(patch) as names:
    mapped = jax.shard_map(
        lambda x, dy: step(x, dy, synchronized="batch"),
        mesh=MESH, in_specs=(BATCH, BATCH), out_specs=(BATCH, BATCH, PartitionSpec()),
    )  # fmt: skip
    close(jax.jit(mapped)(X, DY), wanted)
    ran["shard_map"] = sorted(set(names))
print(json.dumps(ran))
