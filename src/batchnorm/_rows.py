"""Per-channel vectors as the three steps take them: rows of the view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchnorm._axes import View

Tensor = Any
State = dict[str, Tensor]


def row_of(ops: Any, shape: tuple[Any, Any], vector: Tensor | None, dtype: str) -> Any:
    """A parameter or statistic as `[R, C]`, a counter too; the number of updates is a scalar."""
    if vector is None:
        return None
    if ops.shape(vector):
        vector = ops.row(vector, shape)
    own = ops.dtype(vector)
    return vector if own == dtype or own.startswith("int") else ops.cast(vector, dtype)


def as_given(ops: Any, rows: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> State:
    """Rows in the shapes and types of what they replace in the state."""
    return {
        name: ops.cast(ops.reshape(row, ops.shape(state[name])), ops.dtype(state[name]))
        for name, row in rows.items()
    }


class Rows:
    """The state as `[R, C]`, constant, in the statistics' type; the number of updates is a scalar.

    Each is laid out when it is asked for: inference needs two of them.
    """

    def __init__(self, ops: Any, view: View, state: Mapping[str, Tensor], dtype: str) -> None:
        self.ops, self.view, self.state, self.dtype = ops, view, state, dtype
        self.shape = view.row_shape
        self.laid_out: State = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.laid_out:
            constant = self.ops.stop_gradient(self.state[name])
            self.laid_out[name] = row_of(self.ops, self.shape, constant, self.dtype)
        return self.laid_out[name]

    def of(self, state: Mapping[str, Tensor]) -> Rows:
        """The rows of another state."""
        return Rows(self.ops, self.view, state, self.dtype)

    def __contains__(self, name: str) -> bool:
        return name in self.state
