"""The variable scope of a layer: the first call opens it, later calls share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

v1 = tf.compat.v1


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
        if given:
            self._open(given)

    @property
    def name(self) -> str | None:
        """What it is called; None before it is opened."""
        return None if self._scope is None else self._scope.name

    @contextlib.contextmanager
    def entered(self, given: Any, *, built: bool) -> Iterator[None]:
        """Variables are in this scope and ops in the name scope that it opened.

        Args:
            given: the scope to open, in place of the layer's own.
            built: the variables are there.
        """
        if self._scope is None:
            self._open(given or (self._base if self._reuse else None))
        reuse = True if built else self._reuse
        with (
            v1.variable_scope(self._scope, reuse=reuse, auxiliary_name_scope=False) as opened,
            v1.name_scope(opened.original_name_scope),
        ):
            yield

    def _open(self, given: Any) -> None:
        with v1.variable_scope(given, default_name=self._base) as self._scope:
            pass
