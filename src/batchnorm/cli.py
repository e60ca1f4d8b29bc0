"""The command `batchnorm`.

Nothing heavy is imported until a command needs it, so `--help` answers at once.
"""

import importlib.util
import os
import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="batchnorm",
    help="Batch normalization in every mode, on TensorFlow, JAX and PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Backend(StrEnum):
    """The frameworks that Keras can run on."""

    jax = "jax"
    tensorflow = "tensorflow"
    torch = "torch"


# What `demo` imports beside the framework, and the extra that brings it.
_DEMO_MODULES = {"keras": "{backend}", "matplotlib": "demo", "sklearn": "demo"}


def main() -> None:
    """Run the command line, the entry point of the installed `batchnorm`."""
    app()


def version() -> str:
    """Version of the installed package; "unknown" when it runs from a source tree."""
    try:
        return metadata.version("batchnorm")
    except metadata.PackageNotFoundError:
        return "unknown"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchnorm {version()}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Batch normalization in every mode, on TensorFlow, JAX and PyTorch."""


@app.command()
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
    complaint = missing_for_demo(backend) or other_backend_in_use(backend)
    if complaint:
        typer.echo(complaint, err=True)
        raise typer.Exit(1)
    os.environ["KERAS_BACKEND"] = backend.value
    # Imported here: Keras reads KERAS_BACKEND once, at its import.
    from batchnorm.demo import run

    run(seeds=seeds, out=out, quick=quick)


def missing_for_demo(backend: Backend) -> str | None:
    """Sentence that says what `demo` lacks and how to install it, or None."""
    extras = {backend.value: backend.value}
    extras |= {module: extra.format(backend=backend) for module, extra in _DEMO_MODULES.items()}
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
