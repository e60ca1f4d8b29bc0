"""The kernels of `calls.py` on arrays that are sharded over devices: each on its own part.

XLA gathers the operands of a call that it knows nothing about. Here it learns that everything may
be sharded: along G and C each device has channels of its own; along A, B and D moments are merged
and the sums of the derivative are added over the devices, which exchange vectors and nothing else.

Functions, operands and results are those of `calls.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from batchnorm._moments import Moments, merge
from batchnorm.backends.jax import calls as kernels
from batchnorm.backends.jax import operations
from batchnorm.backends.jax.meshes import varying

VIEW = ("a", "g", "b", "c", "d")
VECTOR = ("g", "c")
REDUCED = ("a", "b", "d")

Parts = dict[str, tuple[str, ...]]  # the mesh axes that shard each dimension of the view


def moments(x: Array, weights: Array | None) -> Any:
    return _run("moments", (), x, weights)


def standardize(
    x: Array, weights: Array | None, given: Any, epsilon: float, activation: int
) -> Array:
    return _run("standardize", (epsilon, activation), x, weights, tuple(given))


def forward(
    x: Array,
    weights: Array | None,
    scale: Array | None,
    offset: Array | None,
    epsilon: float,
    activation: int,
) -> Any:
    return _run("forward", (epsilon, activation), x, weights, scale, offset)


def backward(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    frozen: bool,
) -> Any:
    return _run("backward", (epsilon, activation, frozen), x, dy, weights, tuple(given))


def _run(name: str, how: tuple[Any, ...], *operands: Any) -> Any:
    if jax.device_count() == 1 or varying(operands[0]):  # in shard_map it is one's own part
        return getattr(kernels, name)(*operands, *how)
    return _partitioned(name, how)(*operands)


@functools.lru_cache(maxsize=256)
def _partitioned(name: str, how: tuple[Any, ...]) -> Any:
    """A kernel that XLA can partition, as a function of arrays alone; `how` are its constants."""

    def whole(*operands: Any) -> Any:
        return _tuple(getattr(kernels, name)(*operands, *how))

    def partition(_: Any, operands: Any, results: Any) -> Any:
        x = operands[0]
        mesh, parts = _parts(x)
        over = tuple(axis for dimension in REDUCED for axis in parts[dimension])

        def local(*operands: Any) -> Any:
            return _tuple(_EACH[name](over, *operands, *how) if over else whole(*operands))

        shardings = (
            jax.tree.map(lambda one: _sharding(mesh, x.shape, one.shape, parts), given)
            for given in (results, operands)
        )
        return mesh, local, *shardings

    def infer(_: Any, operands: Any, results: Any) -> Any:
        x = operands[0]
        mesh, parts = _parts(x)
        return jax.tree.map(lambda one: _sharding(mesh, x.shape, one.shape, parts), results)

    call = custom_partitioning(whole)
    call.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        sharding_rule=_rule,
        decode_shardings=False,  # it cannot tell of a mesh axis that shards two dimensions
    )
    # custom_partitioning has no batching rule of its own
    function = jax.jit(jax.custom_batching.sequential_vmap(call))
    return lambda *operands: _single(name, function(*operands))


def _tuple(results: Any) -> tuple[Array, ...]:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def _single(name: str, results: tuple[Array, ...]) -> Any:
    return results[0] if name == "standardize" else results


# What each device does with its part, where a reduced dimension is sharded over the axes `over`.


def _each_moments(over: Any, x: Array, weights: Array | None) -> Moments:
    return merge(_Devices(over), Moments(*kernels.moments(x, weights)))


def _each_standardize(over: Any, *arguments: Any) -> Array:
    return kernels.standardize(*arguments)


def _each_forward(
    over: Any,
    x: Array,
    weights: Array | None,
    scale: Array | None,
    offset: Array | None,
    epsilon: float,
    activation: int,
) -> Any:
    measured = _each_moments(over, x, weights)
    given = (*measured, scale, offset, None)
    return kernels.standardize(x, weights, given, epsilon, activation), *measured


def _each_backward(
    over: Any,
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    frozen: bool,
) -> Any:
    how = (epsilon, activation)
    if frozen:
        dx, *sums = kernels.backward(x, dy, weights, given, *how, True)
        return dx, *jax.lax.psum(sums, over)
    sums = jax.lax.psum(kernels.backward_sums(x, dy, weights, given, *how), over)
    return kernels.backward_input(x, dy, weights, given, sums, *how), *sums


_EACH = {
    "moments": _each_moments,
    "standardize": _each_standardize,
    "forward": _each_forward,
    "backward": _each_backward,
}


class _Devices:
    """The operations that `merge` needs, with the devices as the rows that it adds."""

    fill = staticmethod(operations.fill)
    equal = staticmethod(jnp.equal)
    broadcast_to = staticmethod(jnp.broadcast_to)
    shape = staticmethod(jnp.shape)

    def __init__(self, over: tuple[str, ...]) -> None:
        self._over = over

    def sum(self, x: Array, axis: int) -> Array:
        return jax.lax.psum(x, self._over)


# Which dimension of an operand or a result is which dimension of the view: told by their sizes.
# Weights and count have 1 where they do not depend on it.


def _dimensions(view: tuple[int, ...], shape: tuple[int, ...]) -> list[str | None]:
    names = VIEW if len(shape) == len(VIEW) else VECTOR
    sizes = dict(zip(VIEW, view, strict=True))
    return [name if sizes[name] == n else None for name, n in zip(names, shape, strict=True)]


def _parts(x: Any) -> tuple[Mesh, Parts]:
    """How x is sharded, and the mesh that says so.

    Ghost batches split the batch into A and G, and with it the mesh axis that shards it. So the
    mesh is made anew: from the table of XLA's sharding, which device has which tile.
    """
    parts: Parts = dict.fromkeys(VIEW, ())
    devices = sorted(x.sharding.device_set, key=lambda device: device.id)
    sharding = x.sharding._to_xla_hlo_sharding(len(VIEW))
    if sharding.is_replicated() or sharding.is_maximal():
        return Mesh(np.array(devices), ("all",)), parts
    tiles = sharding.tile_assignment_dimensions()
    table = np.array(sharding.tile_assignment_devices()).reshape(tiles)
    axes = []  # (distance of neighbours, size, name)
    for dimension in range(table.ndim):
        line = table[tuple(slice(None) if i == dimension else 0 for i in range(table.ndim))]
        named = []
        for part, (stride, size) in enumerate(_steps(line)):
            axes.append((stride, size, f"{dimension}.{part}"))
            named.append(axes[-1][2])
        # behind x's own dimensions the table has those that replicate it
        if dimension < len(VIEW) and x.shape[dimension] % line.size == 0:
            parts[VIEW[dimension]] = tuple(named)
    axes.sort(reverse=True)
    grid = np.array(devices).reshape([size for _, size, _ in axes])
    return Mesh(grid, [name for _, _, name in axes]), parts


def _steps(line: np.ndarray) -> list[tuple[int, int]]:
    """A line of device numbers as nested arithmetic progressions, outermost first."""
    steps: list[tuple[int, int]] = []
    while line.size > 1:
        stride = int(line[1] - line[0])
        regular = line == line[0] + stride * np.arange(line.size)
        size = int(line.size if regular.all() else regular.argmin())
        steps.insert(0, (stride, size))
        line = line[::size]
    return steps


def _sharding(mesh: Any, view: Any, shape: Any, parts: Parts) -> NamedSharding:
    dimensions = _dimensions(view, shape)
    return NamedSharding(
        mesh, PartitionSpec(*(parts[name] or None if name else None for name in dimensions))
    )


def _rule(mesh: Any, operands: Any, results: Any) -> SdyShardingRule:
    """The same for Shardy, XLA's partitioner today, which spreads shardings by it."""
    view = tuple(operands[0].shape)

    def mapping(i: int, shape: tuple[int, ...]) -> ArrayMapping:
        dimensions = enumerate(_dimensions(view, shape))
        return ArrayMapping(*(name or f"own{i}x{dimension}" for dimension, name in dimensions))

    mappings = [mapping(i, tuple(t.shape)) for i, t in enumerate([*operands, *results])]
    return SdyShardingRule(tuple(mappings[: len(operands)]), tuple(mappings[len(operands) :]))
