"""Per-channel vectors as the three steps take them: rows of the view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchnorm._axes import View
from batchnorm._moments import Moments

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
        self.aside: Rows | None = None  # the same in NumPy, once `aside` asked for them

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


def aside(ops: Any, rows: Rows, moments: Moments, compute: Callable[..., State]) -> State:
    """compute(ops, rows, moments), of vectors that nothing differentiates.

    In NumPy where the backend says so: a call on a few numbers costs a fraction of the framework's.
    """
    host = ops.HOST
    arrays = host and ops.on_host(moments)
    if arrays is not None and rows.aside is None:
        vectors = ops.on_host(rows.state.values())
        if vectors is not None:
            state = dict(zip(rows.state, vectors, strict=True))
            rows.aside = Rows(host, rows.view, state, rows.dtype)
    if arrays is None or rows.aside is None:
        return compute(ops, rows, moments)
    with host.quiet():
        computed = compute(host, rows.aside, Moments(*arrays))
    return {name: ops.asarray(one, moments.mean) for name, one in computed.items()}
