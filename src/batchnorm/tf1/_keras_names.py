"""Initializers, regularizers and constraints that are given as Keras names or configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from batchnorm.tf1._scope import snake_case

v1 = tf.compat.v1


def plain(given: Any) -> Any:
    """An initializer, regularizer or constraint as its class and configuration.

    None stays None; of a function, which has no configuration, the name is left.
    """
    if given is None:
        return None
    if hasattr(given, "get_config"):
        return {"class_name": type(given).__name__, "config": given.get_config()}
    return getattr(given, "__name__", type(given).__name__)


def initializer(given: Any) -> Any:
    """A function of (shape, dtype), or None for the variable scope's.

    Raises:
        ValueError: there is no initializer of this name.
    """
    name, config = given, {}
    if isinstance(given, Mapping):
        name, config = given.get("class_name"), given.get("config", {})
    own = getattr(v1, f"{snake_case(name)}_initializer", None) if isinstance(name, str) else None
    return _found("initializers", given) if own is None else own(**config)


def regularizer(given: Any) -> Callable[[Any], Any] | None:
    """A function of the variable, or None.

    Raises:
        ValueError: there is no regularizer of this name.
    """
    return _found("regularizers", given)


def constraint(given: Any) -> Callable[[Any], Any] | None:
    """A function of the variable's value, or None.

    Raises:
        ValueError: there is no constraint of this name.
    """
    return _found("constraints", given)


def _found(kind: str, given: Any) -> Any:
    if given is None or callable(given):
        return given
    # only here: nothing else of the TensorFlow 1 functions needs Keras
    try:
        return getattr(importlib.import_module("keras"), kind).get(given)
    except ValueError:
        raise ValueError(
            f"BatchNormalization: {kind} must be functions or names that Keras knows; got "
            f"{given!r}."
        ) from None
