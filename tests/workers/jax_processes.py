"""A process of `tests/backends/test_jax_replicas.py`: rank, replicas, folder, port.

`jax.distributed` over loopback, a device in each process. What it pickles: {(name, fused): result}.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import jax_replicas as devices
import numpy as np
from jax.sharding import Mesh, NamedSharding

import engines
import launcher
import replicated

RANK, REPLICAS, FOLDER = devices.RANK, devices.REPLICAS, devices.FOLDER
NAMES = ("mean 1e4", "renorm and mask")


def part(one: replicated.Case, fused: bool | None) -> dict[str, Any]:
    """What this process makes of its rows."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), devices.PARTS)
    operands = jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(sharding, array[RANK : RANK + 1]),
        devices.arrays(one),
    )
    own = jax.tree.map(
        lambda array: engines.ENGINES["jax"].numpy(array.addressable_shards[0].data),
        devices.mapped(one, fused)(*operands),
    )
    (y, dx), (slopes, new) = own
    rows = one.rows[RANK]
    first = {name: slope * (RANK == 0) for name, slope in slopes.items()}  # sums over all
    return {"y": y[0, :rows], "dx": dx[0, :rows], "state": new, **first}


def main() -> None:
    os.environ["XLA_FLAGS"] = ""  # one device
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[4]}", REPLICAS, RANK)
    cases = {name: replicated.case(name, REPLICAS) for name in NAMES}
    found = {(name, f): part(one, f) for name, one in cases.items() for f in (False, None)}
    launcher.keep(FOLDER, RANK, found)


if __name__ == "__main__":
    main()
