"""What a call was given, checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from batchnorm import _axes
from batchnorm._plan import Plan
from batchnorm._weights import printable

Tensor = Any


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


def check_residual(ops: Any, owner: str, x: Tensor, residual: Tensor) -> None:
    """Refuses a residual that is no array like x."""
    check_tensor(ops, owner, "residual", residual)
    shapes = [
        printable(ops, _axes.shape_of(ops, one, owner, name))
        for name, one in (("x", x), ("residual", residual))
    ]
    fits = len(shapes[0]) == len(shapes[1]) and all(
        size == of or None in (size, of) for size, of in zip(*shapes, strict=True)
    )
    types = [ops.dtype(one) for one in (x, residual)]
    if not fits or types[0] != types[1]:
        raise ValueError(
            f"{owner}: residual must have the input's shape and type, {shapes[0]} of {types[0]}; "
            f"got {shapes[1]} of {types[1]}."
        )


def check_mappings(owner: str, parameters: Any, state: Any) -> None:
    """Refuses parameters and a state that are no dictionaries."""
    for name, given in (("parameters", parameters), ("state", state)):
        if not isinstance(given, Mapping):
            raise TypeError(
                f"{owner}: {name} must be a dictionary of tensors, as batchnorm.init makes it; got "
                f"{type(given).__name__}."
            )


def check_tensor(ops: Any, owner: str, name: str, value: Any) -> None:
    """Refuses what the framework would not take for a tensor, in the argument's name."""
    if ops.is_tensor(value):
        return
    try:  # some frameworks take arrays and variables of others
        ops.dtype(value), ops.shape(value)
    except (AttributeError, KeyError, TypeError):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        raise TypeError(
            f"{owner}: {name} must be a tensor of the framework of x; got {kind}."
        ) from None


PARAMETERS = ("gamma", "beta")


def check_vectors(
    ops: Any, plan: Plan, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Refuses parameters and a state that these options and this input do not have."""
    owner, expected = plan.options.owner, plan.vectors
    if unknown := [name for name in parameters if name not in PARAMETERS]:
        raise ValueError(
            f"{owner}: parameters must have no other keys than gamma and beta; "
            f"got {sorted(unknown)}."
        )
    if missing := [name for name in plan.needed if name not in state]:
        raise ValueError(
            f"{owner}: state must hold {', '.join(plan.needed)}; got no {', '.join(missing)}. "
            "Start from batchnorm.init with the same axis, renorm and zero_debias."
        )
    for vectors in (parameters, state):
        for name, vector in vectors.items():
            if vector is None:
                continue
            check_tensor(ops, owner, name, vector)
            if name == "num_updates":
                continue
            if name in PARAMETERS and "float" not in ops.dtype(vector):
                raise TypeError(
                    f"{owner}: {name} must be of a floating-point type; got {ops.dtype(vector)}. "
                    "Cast it first."
                )
            shape = _axes.shape_of(ops, vector, owner, name)
            if any(map(ops.is_tensor, shape)) or shape == expected:  # only the run will know it
                continue
            if _axes.product(shape) != _axes.product(expected):
                raise ValueError(
                    f"{owner}: {name} must have the shape {expected}; got {tuple(shape)} for an "
                    f"input of shape {plan.shape} and axis {plan.options.axis!r}."
                )
