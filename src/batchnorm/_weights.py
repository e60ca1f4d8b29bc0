"""Masks and weights of any shape, as one array of weights over the reduced dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchnorm._axes import View, shape_of

Tensor = Any


def combined_weights(
    ops: Any, owner: str, view: View, x: Tensor, dtype: str, mask: Any, batch_weights: Any
) -> Tensor | None:
    """mask * batch_weights, constant, of the view's `split` shape but 1 on the axes; or None.

    Raises:
        TypeError: it holds no real numbers.
        ValueError: a shape does not broadcast to the dimensions of x that are not in `axis`.
    """
    if mask is None and batch_weights is None:
        return None
    weights: Any = None
    for name, given in (("mask", mask), ("batch_weights", batch_weights)):
        if given is None:
            continue
        if isinstance(given, (str, bytes)):
            raise TypeError(f"{owner}: {name} must be an array of numbers or bools; got {given!r}.")
        given = ops.asarray(given, x)
        if "complex" in ops.dtype(given):
            raise TypeError(f"{owner}: {name} must be real; got {ops.dtype(given)}.")
        given = ops.cast(given, dtype)
        given = ops.reshape(given, _shape_against(ops, owner, view, name, given))
        weights = given if weights is None else weights * given
    free = [1 if i in view.axes else size for i, size in enumerate(view.shape)]
    weights = ops.broadcast_to(weights, free)
    if view.groups is not None:
        weights = ops.reshape(weights, (*view.split[:2], *free[1:]))
    return ops.stop_gradient(weights)


def _shape_against(ops: Any, owner: str, view: View, name: str, given: Tensor) -> list[Any]:
    """The shape of rank(x), 1 on the feature axes, that lets a mask broadcast against x."""
    shape = list(shape_of(ops, given, owner, name))
    free = [i for i in range(len(view.shape)) if i not in view.axes]
    sizes = shape
    if len(shape) == len(view.shape) and all(printable(ops, shape)[i] == 1 for i in view.axes):
        sizes = [shape[i] for i in free]
    fits = len(sizes) <= len(free) and all(
        ops.is_tensor(size) or ops.is_tensor(view.shape[i]) or size in (1, view.shape[i])
        for size, i in zip(sizes, free, strict=False)
    )
    if not fits:
        raise ValueError(
            f"{owner}: {name} must broadcast, from the left, to the shape "
            f"{printable(ops, [view.shape[i] for i in free])}; got {printable(ops, shape)} for an "
            f"input of shape {printable(ops, view.shape)} and axis {list(view.axes)}."
        )
    full: list[Any] = [1] * len(view.shape)
    for size, i in zip(sizes, free, strict=False):
        full[i] = size
    return full


def printable(ops: Any, shape: Sequence[Any]) -> tuple[Any, ...]:
    """A shape for a message: None where the size is only known at run time."""
    return tuple(None if ops.is_tensor(size) else size for size in shape)
