"""What a call was given: checked, and laid out as the three steps take it."""

from __future__ import annotations

import numbers
from typing import Any

from batchnorm import _axes
from batchnorm._options import Options
from batchnorm._statistics import state_names
from batchnorm._weights import printable
from batchnorm.backends.composite import statistics_dtype

Tensor = Any


def type_of_statistics(ops: Any, x: Tensor, owner: str) -> str:
    """The type of x's moments and statistics.

    Raises:
        TypeError: x is none that is normalized.
    """
    if ops.dtype(x) not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(
            f"{owner}: x must be float16, bfloat16, float32 or float64; got {ops.dtype(x)}. Cast "
            "it first."
        )
    return statistics_dtype(ops.dtype(x))


def resolve_training(ops: Any, training: Any, owner: str, name: str = "training") -> bool | Tensor:
    """True, False, or a boolean scalar tensor that is not known yet; `name` is the argument's."""

    def refusal(error: type[Exception]) -> Exception:
        return error(
            f"{owner}: {name} must be a bool, 0, 1 or a boolean scalar tensor; got {training!r}."
        )

    if isinstance(training, bool):
        return training
    if training is None:
        return False
    known: Any = training
    if not isinstance(training, numbers.Integral):
        if not ops.is_tensor(training) and not hasattr(training, "__array__"):
            raise refusal(TypeError)
        shape = ops.shape(training) if ops.is_tensor(training) else training.shape
        if shape:  # one of unknown rank must turn out to be a scalar
            raise refusal(ValueError)
        known = ops.concrete(training)
        if known is None:
            return ops.reshape(ops.cast(training, "bool"), ())
    if known not in (0, 1):
        raise refusal(ValueError)
    return bool(known)


def view_of(
    ops: Any, options: Options, x: Tensor, batch: bool | Tensor, update: bool | Tensor
) -> _axes.View:
    """How this call lays x out: in ghost batches where statistics are taken, else as one group.

    Args:
        batch: whether the batch normalizes. A tensor decides at run time, by the number of groups.
        update: whether the state changes.

    Raises:
        ValueError: an axis is not one of x's, a size on it is unknown, or ghost batches do not
            divide the batch.
    """
    shape = _axes.shape_of(ops, x, options.owner, "x")
    axes = _axes.resolve(options.axis, len(shape), options.owner)
    options.check_axes(axes)
    for axis in axes:
        if ops.is_tensor(shape[axis]):
            raise ValueError(
                f"{options.owner}: the input must have a known size on axis {axis}; got an "
                "unknown one. Set its static shape."
            )
    size = options.virtual_batch_size
    if size is None or (batch is False and update is False):
        return _axes.view(shape, axes)
    samples, known = shape[0], not ops.is_tensor(shape[0])
    message = (
        f"{options.owner}: virtual_batch_size must divide the batch in training; got {size} for a "
        f"batch of {samples if known else 'another size'}. Drop or pad the last batch."
    )
    divides = samples % size == 0 if known else ops.equal(samples % size, 0)
    if ops.is_tensor(batch):
        # Only known at run time whether to group, and inference takes any batch: as one group.
        if known and divides:
            return _axes.view(shape, axes, size, samples // size)
        checked = ops.check(~batch if known else divides | ~batch, ValueError, message, samples)
        if known:
            return _axes.view(shape, axes, samples, 1)
        groups = ops.maximum(ops.where(batch, checked // size, 1), 1)
        return _axes.view(shape, axes, checked // groups, groups)
    if not known:
        samples = ops.check(divides, ValueError, message, samples)
    elif not divides:
        raise ValueError(message)
    return _axes.view(shape, axes, size, samples // size)


_PARAMETERS = {"gamma", "beta"}


def check_vectors(
    ops: Any, options: Options, view: _axes.View, parameters: Any, state: Any
) -> None:
    """Refuses parameters and a state that these options and this input do not have."""
    if not parameters.keys() <= _PARAMETERS:
        raise ValueError(
            f"{options.owner}: parameters must have no other keys than gamma and beta; "
            f"got {sorted(set(parameters) - _PARAMETERS)}."
        )
    needed = state_names(options)
    if missing := [name for name in needed if name not in state]:
        raise ValueError(
            f"{options.owner}: state must hold {', '.join(needed)}; got no {', '.join(missing)}. "
            "Start from batchnorm.init with the same axis, renorm and zero_debias."
        )
    expected = _axes.parameter_shape(view.shape, view.axes)
    for name, vector in (*parameters.items(), *state.items()):
        if vector is None or name == "num_updates":
            continue
        shape = _axes.shape_of(ops, vector, options.owner, name)
        if any(map(ops.is_tensor, shape)):  # only the graph's run will know it
            continue
        if shape != expected and _axes.product(shape) != view.features:
            raise ValueError(
                f"{options.owner}: {name} must have the shape {expected}; got {tuple(shape)} for "
                f"an input of shape {printable(ops, view.shape)} and axis {options.axis!r}."
            )
