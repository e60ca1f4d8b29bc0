"""Where the commands write: checked before the work, and the old file is there until the new is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchnorm.tools.norms import is_keras, is_torch

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"


def check_place(path: Path, option: str) -> None:
    """Refuses a path that cannot be written to.

    Raises:
        ValueError: it is a folder, or its folder is not there or closed.
    """
    if path.is_dir():
        raise ValueError(f"batchnorm: {option} must be a file; got the folder '{path}'.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(
            f"batchnorm: {option} must be in a folder that is there; got '{path}'. Make the folder "
            "first."
        )
    closed = next((one for one in (folder, path) if one.exists() and not _open(one)), None)
    if closed is not None:
        raise ValueError(
            f"batchnorm: {option} must be a file that may be written; got '{path}', where "
            f"'{closed}' is closed to you."
        )


def _open(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK if path.is_dir() else os.W_OK)


def check_ending(path: Path, option: str, *endings: str) -> None:
    """Refuses a name that says another format.

    Raises:
        ValueError: it ends in none of these.
    """
    if path.suffix not in endings:
        raise ValueError(
            f"batchnorm: {option} must end in {' or '.join(endings)}; got '{path.name}'."
        )


def check_out(model: Any, out: Path) -> None:
    """Refuses a name that does not say what a model of this kind is saved as.

    Raises:
        ValueError: it ends in something else, or there is no file for such a model.
    """
    if is_keras(model):
        check_ending(out, "--out", ".keras")
    elif is_torch(model):
        check_ending(out, "--out", ".pt", ".pth")
    else:
        raise ValueError(
            f"batchnorm: MODEL must be a Keras model or a PyTorch module to be saved; got "
            f"{type(model).__name__}. Call the tool in Python, and save the model as you do."
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, which takes its place at the end.

    Whatever is raised inside, an interruption too, leaves the old file as it was and nothing
    beside it. A link goes on leading where it did.
    """
    path = path.resolve()
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield beside
        if path.exists():
            beside.chmod(stat.S_IMODE(path.stat().st_mode))
        with beside.open("rb+") as file:
            os.fsync(file.fileno())  # a new name for what is on the disk, not for what will be
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save(model: Any, out: Path, source: Path | None = None) -> None:
    """Saves a Keras model, or the `state_dict` of a PyTorch module.

    Args:
        source: the file that a Keras model came from, whose numbers alone have changed since:
            everything else of it is kept, the optimizer and the compilation too, if it is a
            `.keras` file.
    """
    with replacing(out) as beside:
        if not is_keras(model):
            sys.modules["torch"].save(model.state_dict(), beside)
        elif source is None or not is_archive(source):
            model.save(beside)
        else:
            with tempfile.TemporaryDirectory() as folder:
                fresh = Path(folder) / "fresh.keras"
                model.save(fresh)
                _copy(source, fresh, beside)


def is_compiled(source: Path | None, model: Any) -> bool:
    """Whether a Keras model, or the file that it is from, says how it is trained."""
    if source is None or not is_archive(source):
        return bool(model.compiled)
    with zipfile.ZipFile(source) as archive:
        return bool(json.loads(archive.read(CONFIG)).get("compile_config"))


def is_archive(path: Path) -> bool:
    """Whether it is a file of Keras 3 with its weights in HDF5."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {WEIGHTS, CONFIG} <= set(archive.namelist())


def _copy(source: Path, fresh: Path, out: Path) -> None:
    """The archive `source` with the weights of `fresh`."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(fresh) as new,
        zipfile.ZipFile(out, "w") as archive,
    ):
        for member in old.infolist():
            if member.filename != WEIGHTS:
                archive.writestr(member, old.read(member))
        archive.writestr(WEIGHTS, _merged(old.read(WEIGHTS), new.read(WEIGHTS)))


def _merged(old: bytes, new: bytes) -> bytes:
    """The weights of the new file, and what only the old one has: the optimizer's."""
    import h5py

    held = io.BytesIO(new)
    with h5py.File(io.BytesIO(old), "r") as given, h5py.File(held, "r+") as taken:
        _add_missing(given, taken)
    return held.getvalue()


def _add_missing(given: Any, taken: Any) -> None:
    for name, item in given.items():
        if name not in taken:
            given.copy(item, taken, name)
        elif hasattr(item, "items"):
            _add_missing(item, taken[name])
