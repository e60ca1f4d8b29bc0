"""The options of a module: flax's names on this side, the core's behind it."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm import _axes
from batchnorm._options import Options
from batchnorm._statistics import initial_value, state_names

# What flax's own modules do not have, with the default: nothing of it is on.
MODES: dict[str, Any] = {
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "virtual_batch_size": None,
    "ghost_order": "strided",
    "adjustment": None,
    "unbiased_moving_variance": False,
    "pooled_moving_variance": False,
    "statistics": "auto",
    "update_statistics": "auto",
    "on_nonfinite": "skip",
    "zero_debias": False,
    "activation": None,
    "fused": None,
}
COUNTERS = ("num_updates", "skipped_updates")
# The core's names of what flax has.
NAMES = {"moving_mean": "mean", "moving_variance": "var"}


def options_of(module: Any, *, synchronized: bool = True, update: bool = True) -> Options:
    """The core's options for a module's attributes.

    Args:
        synchronized: whether `axis_name` counts.
        update: whether the statistics may change.

    Raises:
        TypeError, ValueError: one of them is not what it must be.
    """
    owner = type(module).__name__
    given = {name: getattr(module, name) for name in MODES}
    if not update:
        given["update_statistics"] = False
    _check_groups(module.axis_index_groups, owner)
    given["synchronized"] = False
    if synchronized and module.axis_name is not None:
        name = module.axis_name
        given["synchronized"] = tuple(name) if isinstance(name, (tuple, list)) else name
    given["axis"] = tuple(module.axis) if isinstance(module.axis, Iterable) else module.axis
    given["renorm_clipping"] = hashable(given["renorm_clipping"])
    given.update(momentum=module.momentum, epsilon=module.epsilon, owner=owner)
    items = tuple(given.items())
    if all(isinstance(value, Hashable) for value in given.values()):
        return _kept(items)
    return _made(items)


def hashable(clipping: Any) -> Any:
    """`renorm_clipping` as a tuple of pairs: flax compares and hashes what a module holds."""
    return tuple(sorted(clipping.items())) if isinstance(clipping, Mapping) else clipping


def _made(items: tuple[Any, ...]) -> Options:
    given = dict(items)
    if isinstance(given["renorm_clipping"], tuple):
        given["renorm_clipping"] = dict(given["renorm_clipping"])
    return Options(**given)


_kept = functools.lru_cache(maxsize=256, typed=True)(_made)


def _check_groups(groups: Any, owner: str) -> None:
    """Refuses groups within an axis, for which JAX has no collectives in shard_map."""
    if groups is None or len(groups) == 1:
        return
    groups = [list(group) for group in groups]  # linen makes tuples of them
    size = max(map(len, groups))
    consecutive = all(group == list(range(group[0], group[0] + size)) for group in groups)
    mesh, place = ((len(groups), size), "second") if consecutive else ((size, len(groups)), "first")
    raise ValueError(
        f"{owner}: axis_index_groups must be None or one group of all; got {groups}. Make the mesh "
        f"axis of {len(groups) * size} devices two axes, of {mesh[0]} and {mesh[1]}, and give the "
        f"name of the {place} one as axis_name."
    )


def further(options: Options) -> tuple[str, ...]:
    """What is remembered besides flax's own mean and var: nothing in a plain mode."""
    known = (*NAMES, "moving_stddev")  # the deviation follows from the variance
    names = [name for name in state_names(options) if name not in known]
    if names or options.renorm or options.momentum is None:
        names += COUNTERS
    return tuple(names)


def first(name: str, mean: Any) -> jax.Array:
    """What is remembered before the first update."""
    if name == "num_updates":
        return jnp.zeros((), jnp.int32)
    if name == "skipped_updates":
        return jnp.zeros(jnp.shape(mean), jnp.int32)
    return jnp.full(jnp.shape(mean), initial_value(name), jnp.float32)


def state_of(options: Options, held: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The core's state for what a module holds, vectors in the shape that the core takes."""
    state = {
        name: value if name == "num_updates" else jnp.reshape(value, shape)
        for name, value in held.items()
    }
    if options.renorm_remembers:
        state["moving_stddev"] = jnp.sqrt(state["moving_variance"] + options.epsilon)
    return state


def vector_shape(x: jax.Array, options: Options, held: jax.Array) -> tuple[int, ...]:
    """The shape of the core's vectors for x.

    Raises:
        ValueError: x has another number of features than the vector that is held.
    """
    axes = _axes.resolve(options.axis, x.ndim, options.owner)
    shape = _axes.parameter_shape(x.shape, axes)
    if math.prod(shape) != held.size:
        raise ValueError(
            f"{options.owner}: x must have {held.size} features on axis {list(axes)}, as the "
            f"module was made for; got {math.prod(shape)} in an input of shape {x.shape}."
        )
    return shape


def mask_of(x: jax.Array, mask: Any, options: Options) -> Any:
    """A mask as the core takes it.

    flax broadcasts it against x from the right. One that does not fit so is read from the left
    (`[batch]`, `[batch, time]`).

    Raises:
        ValueError: from the right, it differs from channel to channel.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    if len(shape) != x.ndim or any(
        size not in (1, n) for size, n in zip(shape, x.shape, strict=True)
    ):
        return mask
    axes = _axes.resolve(options.axis, x.ndim, options.owner)
    if any(shape[axis] != 1 for axis in axes):
        raise ValueError(
            f"{options.owner}: mask must be 1 on axis {list(axes)}, broadcast from the right as "
            f"flax does; got the shape {mask.shape} for an input of shape {x.shape}. A position "
            "counts for all channels or for none."
        )
    return jnp.reshape(mask, shape)
