"""Batch normalization in checkpoints of TensorFlow 1, by scope: read, never run."""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm._statistics import initial_value
from batchnorm.tools.norm import AUTO, Array, Norm, Stance

_STATISTICS = ("moving_mean", "moving_variance")


class Scope(Norm):
    """The variables of one layer in a checkpoint; its options are not in there.

    What is known of them: whether there is renorm, and `zero_debias` of the mean. The variance is
    what the program remembered: on the fused path of TensorFlow 1 divided by N - 1, else by N.
    """

    framework = "TensorFlow 1"
    momentum = None
    stances = ()
    takes = frozenset()

    def __init__(self, values: dict[str, Array], name: str) -> None:
        super().__init__(None, name)
        self._values = values

    @property
    def owner(self) -> str:
        return f"scope {self.name!r}"

    def host_statistics(self) -> tuple[Array, Array]:
        mean, variance = (self._values[name].reshape(-1) for name in _STATISTICS)
        return mean, variance

    def host_parameters(self) -> tuple[Array | None, Array | None]:
        gamma, beta = (self._values.get(name) for name in ("gamma", "beta"))
        return (
            None if gamma is None else gamma.reshape(-1),
            None if beta is None else beta.reshape(-1),
        )

    def host_memory(self) -> dict[str, Array]:
        size = self._values["moving_mean"].size
        held = {k: v for k, v in self._values.items() if k not in ("gamma", "beta")}
        return {name: np.broadcast_to(one.reshape(-1), size).copy() for name, one in held.items()}

    def options(self) -> dict[str, Any]:
        return {
            "renorm": "renorm_mean" in self._values,
            "zero_debias": "mean" if "biased_mean" in self._values else False,
        }

    def stance(self) -> Stance:
        return AUTO

    def trains(self) -> bool | None:
        return None

    def sizes(self) -> tuple[int, ...]:
        return tuple(size for size in self._values["moving_mean"].shape if size != 1) or (1,)


def scopes(path: str, owner: str) -> list[Norm]:
    """Every scope of a checkpoint that holds moving statistics, by name.

    Raises:
        ValueError: there is no such checkpoint, or it has no such scope.
    """
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(path)
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"{owner}: source must be the prefix of a checkpoint, or a folder with one; got "
            f"{path!r}. {str(error).splitlines()[0]}"
        ) from error
    shapes = reader.get_variable_to_shape_map()
    found = []
    for name in sorted(shapes):
        scope, _, leaf = name.rpartition("/")
        if leaf == "moving_variance" and _beside(scope, "moving_mean") in shapes:
            found.append(Scope(_values(reader, shapes, scope), scope))
    if not found:
        raise ValueError(
            f"{owner}: source must be a checkpoint with moving_mean and moving_variance in some "
            f"scope; got {path!r} with {len(shapes)} variables."
        )
    return list(found)


def _beside(scope: str, leaf: str) -> str:
    return f"{scope}/{leaf}" if scope else leaf


def _values(reader: Any, shapes: dict[str, Any], scope: str) -> dict[str, Array]:
    def value(leaf: str) -> Array | None:
        name = _beside(scope, leaf)
        return reader.get_tensor(name).astype(np.float64) if name in shapes else None

    leaves = ("gamma", "beta", *_STATISTICS, "moving_stddev", "renorm_mean", "renorm_stddev")
    values = {leaf: value(leaf) for leaf in leaves}
    for leaf in ("renorm_mean", "renorm_stddev"):  # TensorFlow 1.x: divided by a weight of its own
        weight, held = value(f"{leaf}_weight"), values[leaf]
        if weight is not None and held is not None:  # 0 where no batch was seen
            values[leaf] = held / weight if weight else np.full(held.shape, initial_value(leaf))
    for name, leaf in (("biased_mean", "biased"), ("local_step", "local_step")):
        values[name] = value(_beside(scope, f"moving_mean/{leaf}"))
    return {name: one for name, one in values.items() if one is not None}
