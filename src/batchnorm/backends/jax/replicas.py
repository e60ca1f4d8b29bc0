"""JAX inside `shard_map`, `pmap` or a named `vmap`: replicas are what is mapped over.

Under `jax.jit` with a sharded batch there are none: the program is about the whole batch, XLA
exchanges what that takes, and statistics are global whatever `synchronized` says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from batchnorm.backends.jax.meshes import vary, varying


class Replicas(NamedTuple):
    """The axes to take statistics over, and how many devices they have together."""

    axes: tuple[str, ...]
    number: int

    def all_reduce(self, x: jax.Array) -> jax.Array:
        """The sum of x over the replicas, and of its derivatives."""
        return vary(jax.lax.psum(x, self.axes), varying(x))


def find_replicas(synchronized: Any, owner: str) -> Replicas | None:
    """The replicas that `synchronized` names; None for one, outside of every mapped axis.

    Args:
        synchronized: the name of an axis of shard_map, pmap or vmap, or a sequence of several;
            True where there is none.

    Raises:
        RuntimeError: there is no axis of that name, or there are some and none is named.
        TypeError: it is neither names nor True.
        ValueError: a name is given twice, or none in a sequence.
    """
    # JAX 0.10 has no public name for this.
    sizes = {str(name): n for name, n in jax._src.core.get_axis_env().axis_sizes.items()}
    known = sorted(sizes)
    if synchronized is True:
        if known:
            raise RuntimeError(
                f"{owner}: synchronized must name an axis inside shard_map, pmap or a named vmap; "
                f"got True inside the axes {known}. Write synchronized={known[0]!r}."
            )
        return None
    axes = (synchronized,) if isinstance(synchronized, str) else synchronized
    if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, str) for axis in axes):
        raise TypeError(
            f"{owner}: synchronized must be True, False, the name of a mapped axis or a tuple of "
            f"such; got {synchronized!r}."
        )
    if len(set(axes)) != len(axes) or not axes:
        raise ValueError(
            f"{owner}: synchronized must name at least one axis, and each once; "
            f"got {synchronized!r}."
        )
    if not set(axes) <= set(known):
        raise RuntimeError(
            f"{owner}: synchronized (flax's axis_name) must name an axis of the shard_map, pmap or "
            f"vmap around it; got {synchronized!r} inside the axes {known}. Under jax.jit with a "
            "sharded batch statistics are global as it is: write synchronized=True, or "
            "axis_name=None."
        )
    return Replicas(tuple(axes), math.prod(sizes[axis] for axis in axes))


def aligned(replicas: Replicas, means: jax.Array) -> Replicas:
    """The replicas as they are: one program has as many ghost batches on all of them."""
    return replicas


def all_gather(x: jax.Array, replicas: Replicas) -> jax.Array:
    """x of every replica, `[replicas, *x.shape]`, the same on all of them; no derivative."""
    gathered = jax.lax.stop_gradient(x)
    if set(replicas.axes) <= varying(gathered):
        # JAX keeps account of it, and is told that this does not vary
        return jax.lax.all_gather(gathered, replicas.axes, to="invarying")
    for axis in reversed(replicas.axes):  # vmap cannot gather over several at once
        to = "invarying" if axis in varying(gathered) else "varying"
        gathered = jax.lax.all_gather(gathered, axis, to=to)
    return gathered.reshape(replicas.number, *x.shape)
