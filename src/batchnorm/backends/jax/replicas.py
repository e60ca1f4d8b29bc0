"""JAX inside `shard_map`, `pmap` or a named `vmap`: replicas are what is mapped over.

Under `jax.jit` with a sharded batch there are none: the program is about the whole batch, XLA
exchanges what that takes, and statistics are global whatever `synchronized` says.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax

from batchnorm.backends.jax.meshes import vary, varying


class Replicas(NamedTuple):
    """The axis to take statistics over, and how many devices it has."""

    axis: str
    number: int

    def sum_of_zeros(self, x: jax.Array) -> jax.Array:
        """The sum over the replicas of an x that is 0 on each: x, with the sum's derivative."""
        return _sum_of_zeros(self, x)


def find_replicas(synchronized: Any, owner: str) -> Replicas | None:
    """The replicas that `synchronized` names; None for one, outside of every mapped axis.

    Args:
        synchronized: the name of an axis of shard_map, pmap or vmap; True where there is none.

    Raises:
        RuntimeError: there is no axis of that name, or there are some and none is named.
        TypeError: it is neither a name nor True.
    """
    # JAX 0.10 has no public name for this.
    sizes = jax._src.core.get_axis_env().axis_sizes
    axes = sorted(map(str, sizes))
    if synchronized is True:
        if axes:
            raise RuntimeError(
                f"{owner}: synchronized must name an axis inside shard_map, pmap or a named vmap; "
                f"got True inside the axes {axes}. Write synchronized={axes[0]!r}."
            )
        return None
    if not isinstance(synchronized, str):
        raise TypeError(
            f"{owner}: synchronized must be True, False or the name of a mapped axis; "
            f"got {synchronized!r}."
        )
    if synchronized not in axes:
        raise RuntimeError(
            f"{owner}: synchronized must name an axis of the shard_map, pmap or vmap around it; "
            f"got {synchronized!r} inside the axes {axes}. Under jax.jit with a sharded batch "
            "statistics are global as it is: write synchronized=True."
        )
    return Replicas(synchronized, sizes[synchronized])


def aligned(replicas: Replicas, means: jax.Array) -> Replicas:
    """The replicas as they are: one program has as many ghost batches on all of them."""
    return replicas


def all_gather(x: jax.Array, replicas: Replicas) -> jax.Array:
    """x of every replica, `[replicas, *x.shape]`, the same on all of them; no derivative."""
    x = jax.lax.stop_gradient(x)
    if replicas.axis in varying(x):  # JAX keeps account of it, and is told that this does not vary
        return jax.lax.all_gather(x, replicas.axis, to="invarying")
    return jax.lax.all_gather(x, replicas.axis)


def all_reduce(x: jax.Array, replicas: Replicas) -> jax.Array:
    """The sum of x over the replicas, and of its derivatives."""
    return vary(jax.lax.psum(x, replicas.axis), varying(x))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_of_zeros(replicas: Replicas, x: jax.Array) -> jax.Array:
    return x


@_sum_of_zeros.defjvp
def _change_of_sum(replicas: Replicas, at: Any, change: Any) -> Any:
    (x,), (dx,) = at, change
    # not x itself: its second derivative would not be summed
    return _sum_of_zeros(replicas, x), all_reduce(dx, replicas)
