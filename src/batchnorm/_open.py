"""What only graphs need: sizes and a `training` that are open until the program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchnorm import _axes
from batchnorm._options import Options
from batchnorm._plan import Plan, decide, indivisible, view_of
from batchnorm._rows import State

Tensor = Any
Result = tuple[Tensor, State]


def open_view(ops: Any, plan: Plan, x: Tensor) -> _axes.View:
    """The view of an x some of whose sizes only the run will know."""
    grouped = plan.batch or plan.update
    return view_of(ops, plan.options, tuple(ops.shape(x)), plan.axes, grouped)


def open_whole(ops: Any, plan: Plan, x: Tensor) -> _axes.View:
    """The same as one group, for the moving statistics."""
    return _axes.view(tuple(ops.shape(x)), plan.axes)


def by_training(
    ops: Any, options: Options, x: Tensor, training: Tensor, way: Callable[[bool, Tensor], Result]
) -> Result:
    """What `way` returns for a boolean scalar that is not known yet: a conditional of two plans."""
    how = (options.statistics, options.update_statistics)
    if decide(*how, True) == decide(*how, False):
        return way(False, x)
    shape, size = ops.shape(x), options.virtual_batch_size
    strided = size is not None and options.ghost_order == "strided"
    if strided and not ops.is_tensor(shape[0]) and shape[0] % size:
        message = indivisible(ops, options, shape)
        return way(False, ops.check(~training, ValueError, message, x))

    def tensors(training: bool) -> Result:
        y, state = way(training, x)
        return y, {name: ops.asarray(one, y) for name, one in state.items()}

    return ops.cond(training, lambda: tensors(True), lambda: tensors(False))
