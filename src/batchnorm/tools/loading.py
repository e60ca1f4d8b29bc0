"""What the commands are given, from files: a model and its data."""

from __future__ import annotations

import importlib
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_model(path: Path, unsafe: bool) -> Any:
    """The Keras model of a file, in safe mode unless told otherwise.

    Raises:
        ValueError: the file is not there, or holds no model that can be loaded like this.
    """
    import keras

    import batchnorm.keras  # noqa: F401  # registers our layers

    if not path.exists():
        raise ValueError(
            f"batchnorm: MODEL must be a .keras file; got '{path}', which is not there."
        )
    if path.suffix != ".keras" and not unsafe:  # older versions of Keras know no safe mode for them
        raise ValueError(
            f"batchnorm: MODEL must be a .keras file; got '{path}'. Other formats may run code of "
            "their own while they load: add --unsafe if you trust it."
        )
    try:
        return keras.models.load_model(path, safe_mode=not unsafe, compile=False)
    except Exception as error:  # Keras raises whatever the file makes it raise
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ValueError(
            f"batchnorm: MODEL must be a file that Keras can load; got '{path}'. "
            f"{type(error).__name__}: {words}"
        ) from error


def load_data(text: str) -> Any:
    """Data from a `.npy` or `.npz` file, or what `module:function` returns.

    An `.npz` file with one array is that array; with `x` it is x; else a dictionary of inputs.
    Pickled objects are never loaded. A module is looked for in the working directory too.

    Raises:
        ValueError: it is none of these, or cannot be read, or the function raised something.
    """
    import numpy as np  # not at `--help`

    path = Path(text)
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as file:  # NumPy leaves a broken archive open
                held = np.load(file, allow_pickle=False)
                if isinstance(held, np.ndarray):  # as the file says, whatever its name does
                    return held
                arrays = {name: held[name] for name in held.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"batchnorm: --data must be a file of plain arrays; got '{text}'. {error}"
            ) from error
        if "x" in arrays:
            return arrays["x"]
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(
            f"batchnorm: --data must be a .npy or .npz file, or module:function; got '{text}'."
        )
    sys.path.insert(0, "")
    try:
        return _data_of(_function(module, name), text)
    finally:
        sys.path.remove("")


def _function(module: str, name: str) -> Callable[[], Any]:
    wrong = f"batchnorm: --data must name a function that can be imported; got '{module}:{name}'."
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{wrong} {error}") from error
    except Exception as error:  # the user's code
        raise ValueError(f"{wrong}\n{_where(error)}") from error
    if not callable(function):
        raise ValueError(f"{wrong} The module has no such function.")
    return function


def _data_of(function: Callable[[], Any], text: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's code
        raise ValueError(
            f"batchnorm: --data must name a function that returns data; got '{text}', which "
            f"raised:\n{_where(error)}"
        ) from error


def _where(error: Exception) -> str:
    """The user's traceback, without the line of ours that led to it."""
    trace = error.__traceback__
    theirs = error.with_traceback(trace and trace.tb_next)
    return "".join(traceback.format_exception(theirs)).rstrip()
