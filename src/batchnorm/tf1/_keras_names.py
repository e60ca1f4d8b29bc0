"""Initializers, regularizers and constraints that are given as Keras names or configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


def initializer(given: Any) -> Any:
    """A function of (shape, dtype), or None for the variable scope's.

    Raises:
        ValueError: there is no initializer of this name.
    """
    if isinstance(given, str) and hasattr(v1, f"{given}_initializer"):
        return getattr(v1, f"{given}_initializer")()
    return _found("initializers", given)


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
