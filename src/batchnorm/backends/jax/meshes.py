"""What the types of JAX arrays tell of meshes: axes of `shard_map`, and explicit axes."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import jax
from jax.sharding import PartitionSpec


def varying(x: Any) -> frozenset[str]:
    """The axes of shard_map over which x varies; none outside of it, or with check_vma=False."""
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)  # since JAX 0.10
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def explicit(x: Any) -> bool:
    """Whether explicit axes of a mesh (`AxisType.Explicit`) shard x: they are in its type."""
    return any(part is not None for part in jax.typeof(x).sharding.spec)


def vary(x: Any, axes: Set[str]) -> Any:
    """x as it varies over these axes too."""
    missing = tuple(sorted(axes - varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def varying_alike(operands: Any) -> Any:
    """Operands that all vary over the same axes of shard_map: calls and derivatives need that.

    Then a parameter that was the same on all devices gets the sum of their gradients.
    """
    axes = frozenset().union(*map(varying, jax.tree.leaves(operands)))
    return jax.tree.map(lambda one: vary(one, axes), operands) if axes else operands


def sharded_alike(*operands: Any) -> tuple[Any, ...]:
    """Operands that broadcast, each with the explicit axes of all: what `jnp.where` asks for.

    What is added or multiplied may differ there: JAX (0.10.2) finds the common sharding itself.
    """
    arrays = [one for one in operands if isinstance(one, jax.Array)]
    if not any(map(explicit, arrays)):
        return operands
    rank = max(one.ndim for one in arrays)
    common: list[Any] = [None] * rank
    for one in arrays:
        for i, part in enumerate(jax.typeof(one).sharding.spec, rank - one.ndim):
            common[i] = common[i] if part is None else part

    def placed(one: Any) -> Any:
        if not isinstance(one, jax.Array):
            return one
        sizes = enumerate(one.shape, rank - one.ndim)
        spec = PartitionSpec(*(None if size == 1 else common[i] for i, size in sizes))
        return one if jax.typeof(one).sharding.spec == spec else jax.sharding.reshard(one, spec)

    return tuple(map(placed, operands))
