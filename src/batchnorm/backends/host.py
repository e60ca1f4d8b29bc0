"""NumPy, for the tiny step alone: what a few vectors of length C cost is the calls, not the work.

Eager frameworks take 2 to 15 microseconds for an operation, NumPy less than one. A backend's
`on_host` hands its vectors over where that is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

where = np.where
sqrt = np.sqrt
maximum = np.maximum
minimum = np.minimum
isfinite = np.isfinite
equal = np.equal
all = np.all
ones_like = np.ones_like
zeros_like = np.zeros_like
concatenate = np.concatenate


def is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


HELD = ("float32", "int32", "float64", "int64")  # the types of state that come here
_NAMES = {np.dtype(name): name for name in ("bool", *HELD)}


def dtype(x: np.ndarray) -> str:
    return _NAMES[x.dtype]  # dtype.name takes two microseconds


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    return x if _NAMES[x.dtype] == dtype else x.astype(dtype)


def reshape(x: np.ndarray, shape: Any) -> np.ndarray:
    return x if x.shape == shape else x.reshape(shape)


row = reshape  # see `batchnorm.backends`


def shape(x: np.ndarray) -> tuple[int, ...]:
    return x.shape


def broadcast_to(x: np.ndarray, shape: Any) -> np.ndarray:
    return x if x.shape == shape else np.broadcast_to(x, shape)


def sum(x: np.ndarray, axes: Any) -> np.ndarray:
    return np.add.reduce(x, axes, keepdims=True)  # np.sum asks around first


def stop_gradient(x: np.ndarray) -> np.ndarray:
    return x


def known(mask: np.ndarray) -> Any:
    """True where all of the mask is, else the mask."""
    return True if np.count_nonzero(mask) == mask.size else mask


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error."""
    if not condition:
        raise error(message)
    return value


def quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in which infinities and NaN are values like others, as they are in the frameworks."""
    with np.errstate(all="ignore"):
        return function(*arguments)
