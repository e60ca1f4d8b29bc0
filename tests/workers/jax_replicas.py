"""The process of `tests/backends/test_jax_replicas.py`: rank, replicas, folder.

Replicas are host devices under shard_map; they hold equally many rows, so where a case wants fewer,
the rest is masked. What it pickles: {"modes": {(name, fused): ([result of each], messages)}, ...}.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

RANK, REPLICAS, FOLDER = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={REPLICAS}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

import batchnorm  # noqa: E402
import engines  # noqa: E402
import launcher  # noqa: E402
import replicated  # noqa: E402

WHOLE, PARTS = PartitionSpec(), PartitionSpec("batch")
MESSAGE = re.compile(r":(f32|f64)\[([\d,]*)\]\S* = (all_gather|psum)\w*\[")


def padded(one: replicated.Case, array: np.ndarray) -> np.ndarray:
    """Every replica's rows, `[replicas, rows, ...]`, with zeros for those it lacks."""
    return replicated.laid_out(one, array).reshape(len(one.rows), -1, *array.shape[1:])


def arrays(one: replicated.Case) -> tuple[Any, Any, dict[str, Any]]:
    """x, dy, and a mask and weights of the case, padded."""
    given = {name: padded(one, array) for name, array in one.given.items()}
    there = replicated.there(one)
    if not there.all():
        given["mask"] = given.get("mask", True) & there
    x, dy = (padded(one, array).astype(one.dtype) for array in (one.x, one.dy))
    return x, dy, given


def step_of(one: replicated.Case, fused: bool | None, summed: bool) -> Any:
    """A step of a replica; `summed` adds the gradients of the parameters over the replicas."""
    options = {**one.options, "fused": fused, "synchronized": "batch"}
    if "adjustment" in options:
        options["adjustment"] = lambda shape: tuple(
            jnp.asarray(each, one.x.dtype) for each in replicated.vectors(one.x.shape)
        )
    parameters = {name: jnp.asarray(array) for name, array in one.parameters.items()}
    state = {name: jnp.asarray(array) for name, array in one.state.items()}

    def step(x: Any, dy: Any, given: Any) -> Any:
        x, dy, given = jax.tree.map(lambda array: array[0], (x, dy, given))

        def loss(x: Any, parameters: Any) -> Any:
            y, new = batchnorm.batch_norm(x, parameters, state, **options, **given)
            return (y * dy).sum(), (y, new)

        (_, (y, new)), (dx, slopes) = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, parameters)
        if summed:
            slopes = jax.lax.psum(slopes, "batch")
        return (y[None], dx[None]), (slopes, new)

    return step


def results(one: replicated.Case, out: Any) -> list[dict[str, Any]]:
    """As the other engines return them; the first replica has the sum of the gradients."""
    (y, dx), (slopes, new) = jax.tree.map(engines.ENGINES["jax"].numpy, out)
    return [
        {
            "y": y[rank, own],
            "dx": dx[rank, own],
            "state": new,
            **{name: slope * (rank == 0) for name, slope in slopes.items()},
        }
        for rank, own in enumerate(replicated.there(one))
    ]


def messages(one: replicated.Case, fused: bool | None) -> list[tuple[str, str, int]]:
    """The collectives of a step: name, type, number of elements of the result."""
    function = mapped(one, fused, check_vma=False, summed=False)
    found = MESSAGE.findall(str(jax.make_jaxpr(function)(*arrays(one))))
    return [
        (name, kind, int(np.prod([int(n) for n in sizes.split(",") if n])))
        for kind, sizes, name in found
    ]


def mapped(
    one: replicated.Case, fused: bool | None, check_vma: bool = True, summed: bool = False
) -> Any:
    """The whole step as a function of arrays `[replicas, rows, ...]`."""
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    return jax.jit(
        jax.shard_map(
            step_of(one, fused, summed),
            mesh=mesh,
            in_specs=PARTS,
            out_specs=((PARTS, PARTS), WHOLE),
            check_vma=check_vma,
        )
    )


def modes() -> dict[Any, Any]:
    found = {}
    for name in replicated.NAMES:
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):
            with jax.enable_x64(one.dtype == "float64"):
                parts = results(one, mapped(one, fused)(*arrays(one)))
                found[name, fused] = parts, messages(one, fused)
    return found


def other_maps() -> dict[Any, Any]:
    """shard_map that keeps no account of what varies, pmap, and vmap."""
    found = {}
    for name in ("mean 1e4", "renorm and mask"):
        one = replicated.case(name, REPLICAS)
        for fused in (False, None):
            step = step_of(one, fused, summed=True)
            for how, function in (
                ("unchecked", mapped(one, fused, check_vma=False, summed=True)),
                ("pmap", jax.pmap(step, "batch")),
                ("vmap", jax.jit(jax.vmap(step, axis_name="batch"))),
            ):
                if how == "unchecked":
                    out = function(*arrays(one))
                else:  # these take the replicas' dimension away, and give all replicas' state
                    out = function(*jax.tree.map(lambda array: array[:, None], arrays(one)))
                    big = jax.tree.map(lambda array: array[:, 0], out[0])
                    out = big, jax.tree.map(lambda array: array[0], out[1])
                found[name, fused, how] = results(one, out)
    return found


def jit_of_a_sharded_batch() -> dict[Any, Any]:
    """No map at all: the program is about the whole batch, and XLA divides it."""
    one = replicated.case("mean 1e4", REPLICAS, replicated.EQUAL)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PARTS)
    x, dy = (jax.device_put(array, sharding) for array in (one.x, one.dy))
    found = {}
    for how, options in (
        (True, {"synchronized": True}),
        (False, {"synchronized": False}),
        ("ghost", {"virtual_batch_size": 8 // REPLICAS}),
    ):

        def loss(x: Any, parameters: Any) -> Any:
            y, new = batchnorm.batch_norm(
                x,
                parameters,
                one.state,
                training=True,
                **options,  # noqa: B023
            )
            return (y * dy).sum(), (y, new)

        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        (_, (y, new)), (dx, slopes) = step(x, one.parameters)
        out = {"y": y, "dx": dx, "state": new, **slopes}
        found[how] = jax.tree.map(engines.ENGINES["jax"].numpy, out)
    return found


def main() -> None:
    found = {"modes": modes(), "maps": other_maps(), "jit": jit_of_a_sharded_batch()}
    launcher.keep(FOLDER, RANK, found)


if __name__ == "__main__":
    main()
