"""The options of a layer as tensors of a call, and as JSON in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

# Those of the core that a configuration holds: all but `adjustment`, which is a function.
SAVED = (
    "axis",
    "momentum",
    "epsilon",
    "renorm",
    "renorm_clipping",
    "renorm_momentum",
    "fused",
    "virtual_batch_size",
    "ghost_order",
    "synchronized",
    "unbiased_moving_variance",
    "pooled_moving_variance",
    "statistics",
    "update_statistics",
    "on_nonfinite",
    "zero_debias",
)


def as_tensors(value: Any) -> Any:
    """The value of an option with Keras variables in it as tensors, traced ones under a trace."""
    if isinstance(value, Mapping):
        return {key: as_tensors(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(as_tensors(one) for one in value)
    return value.value if isinstance(value, keras.Variable) else value


def plain(given: Mapping[str, Any]) -> list[Any] | None:
    """Options in a form that equals another's where they are the same; None where a tensor or what
    may change in place is among them."""
    key: list[Any] = []
    for value in given.values():
        if isinstance(value, (list, tuple)) and all(isinstance(one, int) for one in value):
            value = tuple(value)
        elif isinstance(value, keras.Variable) or not (
            value is None or isinstance(value, (bool, int, float, str)) or callable(value)
        ):
            return None
        key += [type(value), value]
    return key


def returning_tensors(function: Any) -> Any:
    """A user's function whose returned tuple may hold Keras variables."""
    if not callable(function):
        return function  # Options refuses it
    return lambda *arguments: as_tensors(function(*arguments))


def configuration(layer: Any) -> dict[str, Any]:
    """The options that a layer has beside those of every Keras layer, as JSON can hold them."""
    config = {name: _plain(getattr(layer, name)) for name in SAVED}
    config |= {name: getattr(layer, name) for name in ("center", "scale", "train_parameters")}
    config["activation"] = keras.activations.serialize(layer.activation)
    for of in ("beta", "gamma", "moving_mean", "moving_variance"):
        initializer = getattr(layer, f"{of}_initializer")
        config[f"{of}_initializer"] = keras.initializers.serialize(initializer)
    for of in ("beta", "gamma"):
        regularizer = getattr(layer, f"{of}_regularizer")
        config[f"{of}_regularizer"] = keras.regularizers.serialize(regularizer)
        constraint = getattr(layer, f"{of}_constraint")
        config[f"{of}_constraint"] = keras.constraints.serialize(constraint)
    return config


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes, from a configuration."""
    result = dict(config)
    if clipping := config.get("renorm_clipping"):
        result["renorm_clipping"] = {
            key: keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
            for key, value in clipping.items()
        }
    return result


def _plain(value: Any) -> Any:
    """A value of an option as JSON can hold it: tensors as numbers, schedules as their configs."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "group_name"):  # a torch process group
        return value.group_name
    if callable(value) and not keras.ops.is_tensor(value):
        return keras.saving.serialize_keras_object(value)
    return keras.ops.convert_to_numpy(value).tolist()
