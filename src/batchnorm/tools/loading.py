"""What the commands are given, from files and functions: a model and its data."""

from __future__ import annotations

import importlib
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchnorm.tools.arguments import required
from batchnorm.tools.norms import is_keras


def load_model(text: str, unsafe: bool) -> tuple[Any, Path | None]:
    """The Keras model of a file and its path, or what `module:function` returns and None.

    A file is loaded in safe mode unless told otherwise, and not compiled.

    Raises:
        ValueError: the file is not there, or holds no model that can be loaded like this; or the
            function raised something.
    """
    path = Path(text)
    if ":" in text and not path.exists():
        return _called(text, "MODEL", "a model"), None
    return _keras_model(path, unsafe), path


def _keras_model(path: Path, unsafe: bool) -> Any:
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

    An `.npz` file with one array is that array, else a dictionary of them: see `fitted`. Pickled
    objects are never loaded. A module is looked for in the working directory too.

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
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(
            f"batchnorm: --data must be a .npy or .npz file, or module:function; got '{text}'."
        )
    return _called(text, "--data", "data")


def _called(text: str, option: str, what: str) -> Any:
    """What the function `module:function` returns, of the working directory too."""
    module, _, name = text.partition(":")
    sys.path.insert(0, "")
    try:
        return _result(_function(module, name, option), text, option, what)
    finally:
        sys.path.remove("")


def _function(module: str, name: str, option: str) -> Callable[[], Any]:
    wrong = f"batchnorm: {option} must name a function that can be imported; got '{module}:{name}'."
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"{wrong} {error}") from error
    except Exception as error:  # the user's code
        raise ValueError(f"{wrong}\n{_where(error)}") from error
    if not callable(function):
        raise ValueError(f"{wrong} The module has no such function.")
    return function


def _result(function: Callable[[], Any], text: str, option: str, what: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's code
        raise ValueError(
            f"batchnorm: {option} must name a function that returns {what}; got '{text}', which "
            f"raised:\n{_where(error)}"
        ) from error


def fitted(model: Any, data: Any) -> Any:
    """The data as this model takes it.

    Of several arrays in a dictionary those go in that have the names of the model's inputs; where
    some input has none, the array `x` is the data.

    Raises:
        ValueError: a Keras model with known inputs gets none for one of them, or another shape.
    """
    if not isinstance(data, dict) and not hasattr(data, "shape"):
        return data
    if not is_keras(model):
        named = isinstance(data, dict) and required(model) <= data.keys()
        return data if named or "x" not in data else data["x"]
    shapes = {one.name: tuple(one.shape) for one in getattr(model, "inputs", None) or []}
    if isinstance(data, dict) and "x" in data and not shapes.keys() <= data.keys():
        data = data["x"]
    if not shapes:  # a model of its own kind, which says nothing of its inputs
        return data
    if not isinstance(data, dict):
        _check_shape("an array", data, next(iter(shapes.values())), len(shapes))
        return data
    if missing := [name for name in shapes if name not in data]:
        names = "x=..." if len(shapes) == 1 else ", ".join(f"{name}=..." for name in shapes)
        raise ValueError(
            f"batchnorm: --data must hold an array for each input of the model; got "
            f"{', '.join(data)} and none for {', '.join(missing)}. Save it with "
            f"np.savez(file, {names})."
        )
    for name, shape in shapes.items():
        _check_shape(name, data[name], shape, 1)
    return {name: data[name] for name in shapes}  # the others are labels, or something else


def _check_shape(name: str, array: Any, shape: tuple[int | None, ...], inputs: int) -> None:
    if inputs > 1:
        raise ValueError(
            f"batchnorm: --data must hold an array for each of the {inputs} inputs of the model; "
            "got one. Save them with np.savez(file, name=...) under the names of the inputs."
        )
    got = tuple(array.shape)
    wrong = f"batchnorm: --data must hold rows of shape {shape[1:]}; got {name} of shape {got}."
    if _fits(got, shape):
        return
    if _fits(got, shape[1:]):
        raise ValueError(f"{wrong} That is one example: save it with an axis in front, x[None].")
    raise ValueError(wrong)


def _fits(got: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    pairs = zip(got, shape, strict=False)
    return len(got) == len(shape) and all(known in (None, size) for size, known in pairs)


def _where(error: Exception) -> str:
    """The user's traceback, without the line of ours that led to it."""
    trace = error.__traceback__
    theirs = error.with_traceback(trace and trace.tb_next)
    return "".join(traceback.format_exception(theirs)).rstrip()
