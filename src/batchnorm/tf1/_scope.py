"""The name of a layer, and its variable scope: the first call opens it, later calls share it."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1
_numbers: weakref.WeakKeyDictionary[Any, Counter[str]] = weakref.WeakKeyDictionary()


def snake_case(class_name: str) -> str:
    """`tpu_batch_normalization` for TpuBatchNormalization: the default scope of a class."""
    words = re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", class_name)
    words = re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()
    return f"private{words}" if words.startswith("_") else words  # no scope begins with _


def unique_name(base: str) -> str:
    """`base_1` for the first layer of a graph that was given no name, then `base_2`."""
    numbers = _numbers.setdefault(v1.get_default_graph(), Counter())
    numbers[base] += 1
    return f"{base}_{numbers[base]}"


class LayerScope:
    """A scope named like the layer, and numbered where that name is taken.

    Args:
        base: the layer's name.
        reuse: as in `tf.compat.v1.variable_scope`, for the first call.
        given: the scope itself, where the layer does not choose it.
    """

    def __init__(self, base: str, reuse: Any, given: Any) -> None:
        self._base = base
        self._reuse = reuse
        self._scope: Any = None
        self._inside = False
        if given:
            self._open(given)

    @property
    def name(self) -> str | None:
        """What it is called; None before it is opened."""
        return None if self._scope is None else self._scope.name

    @contextlib.contextmanager
    def entered(self, given: Any = None, *, built: bool = False) -> Iterator[None]:
        """Variables are in this scope and ops in the name scope that it opened.

        Args:
            given: the scope to open, in place of the layer's own.
            built: the variables are there.
        """
        if self._inside:  # a method of the layer that another one calls
            yield
            return
        if self._scope is None:
            self._open(given or (self._base if self._reuse else None))
        reuse = True if built else self._reuse
        self._inside = True
        try:
            with (
                v1.variable_scope(self._scope, reuse=reuse, auxiliary_name_scope=False) as opened,
                v1.name_scope(opened.original_name_scope),
            ):
                yield
        finally:
            self._inside = False

    def _open(self, given: Any) -> None:
        with v1.variable_scope(given, default_name=self._base) as self._scope:
            pass
