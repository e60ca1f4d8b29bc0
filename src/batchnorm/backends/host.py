"""The operations on vectors in NumPy: what it takes to merge moments, to correct, to remember.

No framework, and no big step: what nothing differentiates is computed here where a framework's own
calls cost more than their arithmetic, and by tools. See PROTOCOL in `batchnorm.backends`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

where = np.where
equal = np.equal
isfinite = np.isfinite
maximum = np.maximum
minimum = np.minimum
sqrt = np.sqrt
log = np.log
expm1 = np.expm1
all = np.all
ones_like = np.ones_like
zeros_like = np.zeros_like
concatenate = np.concatenate


def quiet() -> Any:
    """A context in which NaN and infinities are numbers, as in the frameworks."""
    return np.errstate(all="ignore")


def is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def dtype(x: np.ndarray) -> str:
    return _name(x.dtype)


@functools.cache
def _name(dtype: np.dtype) -> str:
    return dtype.name  # NumPy makes it anew each time


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    return x if _name(x.dtype) == dtype else x.astype(dtype)


def shape(x: np.ndarray) -> tuple[int, ...]:
    return x.shape


def reshape(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def broadcast_to(x: np.ndarray, shape: Any) -> np.ndarray:
    return x if x.shape == shape else np.broadcast_to(x, shape)


def row(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return x if x.ndim == 1 and shape[0] == 1 else reshape(x, shape)


def fill(x: np.ndarray, condition: np.ndarray, value: float) -> np.ndarray:
    return np.where(condition, x.dtype.type(value), x)


def sum(x: np.ndarray, axes: Any) -> np.ndarray:
    return np.add.reduce(x, axes, keepdims=True)  # np.sum asks around first


def products(x: np.ndarray) -> np.ndarray:
    """Of each row and all behind it."""
    return np.cumprod(x[::-1], 0)[::-1]


def indices(x: np.ndarray) -> np.ndarray:
    """The numbers of x's rows, `[G, 1]`."""
    return np.arange(len(x), dtype=x.dtype)[:, None]


def stop_gradient(x: np.ndarray) -> np.ndarray:
    return x


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error."""
    if not condition:
        raise error(message)
    return value
