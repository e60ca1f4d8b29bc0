"""Checkpoints of TensorFlow 1.x, renorm layers with their old variables included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
_DEBIASED = ("renorm_mean", "renorm_stddev")


def restore(
    session: Any, path: str, variables: Sequence[Any] | None = None, epsilon: float = 1e-3
) -> None:
    """Restores variables from a checkpoint, whatever version of TensorFlow wrote it.

    Like `tf.compat.v1.train.Saver(variables).restore(session, path)`, and besides it reads renorm
    layers as TensorFlow 1.x saved them: `renorm_mean` and `renorm_stddev` with a scalar
    `renorm_mean_weight` and `renorm_stddev_weight` that they are divided by, and without
    `moving_stddev`, which is sqrt(moving_variance + epsilon). A layer that never trained keeps the
    renorm state that it was initialized with.

    Args:
        session: of a graph whose variables are initialized.
        path: the prefix of the checkpoint's files, as for `Saver.restore`.
        variables: what is restored; the graph's global variables by default.
        epsilon: of the renorm layers.

    Raises:
        ValueError: the checkpoint lacks a variable, or has it in another shape.
    """
    reader = tf.train.load_checkpoint(path)
    stored = reader.get_variable_to_shape_map()
    with session.graph.as_default():
        wanted = v1.global_variables() if variables is None else list(variables)
        old = [one for one in wanted if _is_of_1x(one.op.name, stored)]
        plain = [one for one in wanted if all(one is not other for other in old)]
        _check(plain, stored, path)
        if plain:
            v1.train.Saver(plain).restore(session, path)
        for variable in old:
            value = _value_of_1x(variable.op.name, reader, stored, epsilon)
            if value is not None:
                assign(session, variable, value)


def assign(session: Any, variable: Any, value: Any) -> None:
    """Gives a variable a value, without a new op in the graph."""
    given = variable.initializer.inputs[1]
    session.run(variable.initializer, {given: np.reshape(value, variable.shape.as_list())})


def _is_of_1x(name: str, stored: Mapping[str, Any]) -> bool:
    scope, _, leaf = name.rpartition("/")
    if leaf in _DEBIASED:
        return f"{name}_weight" in stored
    return leaf == "moving_stddev" and _beside(scope, "renorm_stddev_weight") in stored


def _beside(scope: str, leaf: str) -> str:
    return f"{scope}/{leaf}" if scope else leaf


def _value_of_1x(
    name: str, reader: Any, stored: Mapping[str, Any], epsilon: float
) -> np.ndarray | None:
    """The value of today's variable; None where the checkpoint has seen no batch."""
    scope, _, leaf = name.rpartition("/")
    if leaf == "moving_stddev":
        return np.sqrt(reader.get_tensor(_beside(scope, "moving_variance")) + epsilon)
    weight = reader.get_tensor(f"{name}_weight")
    return None if weight == 0 else reader.get_tensor(name) / weight


def _check(variables: Sequence[Any], stored: Mapping[str, Any], path: str) -> None:
    for one in variables:
        info = one._get_save_slice_info() if hasattr(one, "_get_save_slice_info") else None
        name, shape = (
            (one.op.name, one.shape.as_list())
            if info is None  # else a part of a partitioned variable, which is saved whole
            else (info.full_name, list(info.full_shape))
        )
        if stored.get(name) != shape:
            raise ValueError(
                f"restore: the checkpoint {path!r} must hold {name} of shape {tuple(shape)}; got "
                f"{'none' if name not in stored else tuple(stored[name])}. Restore only the "
                "variables that it has."
            )
