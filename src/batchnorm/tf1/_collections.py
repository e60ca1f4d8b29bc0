"""The collections that `tf.contrib` fills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def names(given: Any) -> list[str]:
    """One name, several or none as a list: a string is one name, not its characters (D26)."""
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def check(**arguments: Any) -> None:
    """Refuses what names no collections; a dictionary has them by variable.

    Raises:
        TypeError: an argument is neither None, a name, nor several.
    """
    for argument, given in arguments.items():
        for one in given.values() if isinstance(given, dict) else [given]:
            known = one is None or isinstance(one, (str, Iterable))
            if not known or not all(isinstance(name, str) for name in names(one)):
                raise TypeError(
                    f"batch_norm: {argument} must be None, the name of a collection or a list of "
                    f"names; got {one!r}."
                )


def of_variables(given: Any, name: str) -> list[str]:
    """Where a variable of this name goes: those given for it, the global and the model's.

    Those given are not for the state of renorm and zero-debias.
    """
    wanted = names(given.get(name) if isinstance(given, dict) else given)
    wanted = wanted if name in ("beta", "gamma", "moving_mean", "moving_variance") else []
    own = [v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.MODEL_VARIABLES]
    return list(dict.fromkeys([*wanted, *own]))


def add_updates(given: Any, updates: Sequence[Any], as_operations: bool) -> None:
    """Adds update ops, or, as contrib's own code did, what they return."""
    for update in updates:
        kept = getattr(update, "op", update) if as_operations else update
        v1.add_to_collections(names(given), kept)


def add_output(given: Any, alias: str, output: Any) -> Any:
    """The output, in collections and under an alias by which they are read."""
    if collections := names(given):
        output.aliases = [*getattr(output, "aliases", []), alias]
        v1.add_to_collections(collections, output)
    return output
