"""The command `batchnorm demo`."""

import importlib.util
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# What it imports beside the framework, and the extra that brings it.
_MODULES = {"keras": "keras", "matplotlib": "demo", "sklearn": "demo"}


class Backend(StrEnum):
    """The frameworks that Keras can run on."""

    jax = "jax"
    tensorflow = "tensorflow"
    torch = "torch"


def demo(
    backend: Annotated[Backend, typer.Option(help="Framework to train on.")] = Backend.jax,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row of the table.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for the plot and the rows.")] = Path(
        "batchnorm-demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps of each: shows that it works, no more.")
    ] = False,
) -> None:
    """Train on real handwritten digits, and see which published claims hold here."""
    complaint = missing(backend) or other_backend_in_use(backend)
    if complaint:
        typer.echo(complaint, err=True)
        raise typer.Exit(1)
    os.environ["KERAS_BACKEND"] = backend.value
    # Imported here: Keras reads KERAS_BACKEND once, at its import.
    from batchnorm.demo.trials import run

    run(seeds=seeds, out=out, quick=quick)


def missing(backend: Backend) -> str | None:
    """Sentence that says what `demo` lacks and how to install it, or None."""
    extras = {backend.value: backend.value, **_MODULES}
    missing = [module for module in extras if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    wanted = ",".join(dict.fromkeys(extras[module] for module in missing))
    return (
        f"batchnorm demo: --backend must be one whose packages are installed; got '{backend}' "
        f"without {', '.join(missing)}. Run: pip install 'batchnorm[{wanted}]'"
    )


def other_backend_in_use(backend: Backend) -> str | None:
    """Sentence that says that Keras already runs on another backend here, or None."""
    keras = sys.modules.get("keras")
    if keras is None or keras.backend.backend() == backend:
        return None
    return (
        f"batchnorm demo: --backend must be '{keras.backend.backend()}', which Keras already uses "
        f"in this process; got '{backend}'. Start a new process to change it."
    )
