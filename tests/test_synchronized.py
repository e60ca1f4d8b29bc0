"""`synchronized=True` takes one replica so far: more are refused in words, never ignored."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchnorm

TENSORFLOW = """
import tensorflow as tf, batchnorm
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = tf.ones((4, 3))
parameters, state = batchnorm.init(x)
with strategy.scope():
    try:
        batchnorm.batch_norm(x, parameters, state, training=True, synchronized=True)
    except RuntimeError as error:
        print(error)
"""

TORCH = """
import sys, torch, torch.distributed as dist, batchnorm

def replica(rank, file):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x = torch.ones((4, 3))
    parameters, state = batchnorm.init(x)
    try:
        batchnorm.batch_norm(x, parameters, state, training=True, synchronized=True)
    except RuntimeError as error:
        if rank == 0:
            print(error, flush=True)
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(replica, (sys.argv[1],), nprocs=2)
"""


def printed(source: str, *arguments: str, tmp_path) -> str:
    script = tmp_path / "script.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_two_tensorflow_replicas_are_refused(tmp_path) -> None:
    assert printed(TENSORFLOW, tmp_path=tmp_path) == (
        "batch_norm: synchronized must be False with more than one replica in this version; got "
        "True with 2 replicas."
    )


def test_two_torch_processes_are_refused(tmp_path) -> None:
    assert printed(TORCH, str(tmp_path / "rendezvous"), tmp_path=tmp_path) == (
        "batch_norm: synchronized must be False with more than one process in this version; got "
        "True with 2 processes."
    )


def test_a_named_axis_of_jax_is_refused() -> None:
    x = jnp.ones((2, 4, 3))
    parameters, state = batchnorm.init(x[0])

    def step(x):
        return batchnorm.batch_norm(x, parameters, state, training=True, synchronized=True)[0]

    message = (
        "batch_norm: synchronized must be False inside shard_map, pmap or a named vmap in this "
        "version; got True inside the axes ['batch']."
    )
    with pytest.raises(RuntimeError) as caught:
        jax.vmap(step, axis_name="batch")(x)
    assert str(caught.value) == message


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_one_replica_equals_the_plain_function(engine, mode: str) -> None:
    x = engine.tensor(np.random.default_rng(0).normal(size=(6, 3)).astype("float32"))
    parameters, state = batchnorm.init(x)
    how = engine.modes[-1] if mode == "compiled" else "eager"

    def step(x, synchronized):
        return batchnorm.batch_norm(x, parameters, state, training=True, synchronized=synchronized)[
            0
        ]

    plain = engine.run(lambda x: step(x, False), x, mode=how)
    synchronized = engine.run(lambda x: step(x, True), x, mode=how)
    np.testing.assert_array_equal(engine.numpy(plain), engine.numpy(synchronized))
