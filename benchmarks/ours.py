"""Our side of every comparison: `batch_norm` as functions of the same form as the peers'.

Every function that the engines time is `f(x, gamma, beta, state, extra) -> (y, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from batchnorm import batch_norm, init
from benchmarks.cases import Case

EPSILON = 1e-3
MOMENTUM = 0.9
GHOST = 16

Function = Callable[[Any, Any, Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, ...]]


class Given(NamedTuple):
    """What one case is measured on: tensors of the framework; `extra` holds masks and weights."""

    x: Any
    dy: Any
    gamma: Any
    beta: Any
    state: dict[str, Any]
    extra: dict[str, Any]
    axis: int  # of the channels


def arrays(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """x and dy in float32."""
    shape = case.size.shape(case.layout)
    generator = np.random.default_rng(1)
    x = generator.standard_normal(shape, np.float32)
    return x * 2 + 1, generator.standard_normal(shape, np.float32)


def vectors(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """gamma and beta."""
    return np.full(shape, 1.5, np.float32), np.full(shape, 0.1, np.float32)


def given(
    case: Case, tensor: Callable[..., Any], parameter: Callable[[np.ndarray], Any], renorm: bool
) -> Given:
    """The tensors of a case, made by these two functions of a framework."""
    x, dy = (tensor(array, case.dtype) for array in arrays(case))
    gamma, beta = (parameter(vector) for vector in vectors((case.size.c,)))
    axis = 1 if case.layout == "first" else -1
    _, state = init(x, axis=axis, renorm=renorm)
    return Given(x, dy, gamma, beta, state, {}, axis)


def plain(given: Given, training: bool = True, **options: Any) -> Function:
    """`batchnorm.batch_norm`, with other options where the case is about them."""
    options = {"axis": given.axis, "momentum": MOMENTUM, "epsilon": EPSILON, **options}

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any, Any]:
        parameters = {"gamma": gamma, "beta": beta}
        return batch_norm(x, parameters, state, training=training, **options, **extra)

    return function


def then(function: Function, activation: Callable[[Any], Any]) -> Function:
    """The function, and an activation after it."""

    def both(*arguments: Any) -> tuple[Any, ...]:
        y, *rest = function(*arguments)
        return activation(y), *rest

    return both
