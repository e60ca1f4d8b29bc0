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


class Method(StrEnum):
    """The ways of `reestimate`."""

    exact = "exact"
    average = "average"
    ema = "ema"


class FailOn(StrEnum):
    """What makes `inspect` end with exit code 1."""

    error = "error"
    warning = "warning"
    note = "note"
    never = "never"


_Model = Annotated[Path, typer.Argument(metavar="MODEL.keras", help="A saved Keras model.")]
_Data = Annotated[
    str, typer.Option(help="A .npy or .npz file, or module:function, which returns the data.")
]
_MaybeData = Annotated[str | None, typer.Option(help="As for inspect; may be left out.")]
_Out = Annotated[Path, typer.Option(help="Where to save the new model.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a batch, where data is an array.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="Batches to read at most.")]
_Unsafe = Annotated[
    bool, typer.Option("--unsafe", help="Load models that run code of their own (lambdas).")
]


@app.command()
def inspect(
    model: _Model,
    data: _Data,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    fail_on: Annotated[FailOn, typer.Option(help="What ends with exit code 1.")] = FailOn.error,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers.")] = None,
    unsafe: _Unsafe = False,
) -> None:
    """Say which layer makes evaluation differ from training, and why."""
    from batchnorm.tools import command

    raise typer.Exit(
        command.inspect(model, data, batch_size, steps, unsafe, fail_on.value, html, json)
    )


@app.command()
def reestimate(
    model: _Model,
    data: _Data,
    out: _Out,
    method: Annotated[Method, typer.Option(help="How batches are pooled.")] = Method.exact,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    layer_by_layer: Annotated[
        bool, typer.Option("--layer-by-layer", help="Settle one layer after the other.")
    ] = False,
    unsafe: _Unsafe = False,
) -> None:
    """Replace the moving statistics by those of the data."""
    from batchnorm.tools import command

    raise typer.Exit(
        command.reestimate(
            model, data, out, method.value, batch_size, steps, layer_by_layer, unsafe
        )
    )


@app.command()
def repair(
    model: _Model,
    out: _Out,
    data: _MaybeData = None,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    unsafe: _Unsafe = False,
) -> None:
    """Replace moving statistics that are NaN, infinite or negative."""
    from batchnorm.tools import command

    raise typer.Exit(command.repair(model, data, out, batch_size, steps, unsafe))


@app.command()
def fold(
    model: _Model,
    out: _Out,
    data: _MaybeData = None,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    unsafe: _Unsafe = False,
) -> None:
    """Make a model without batch normalization, for inference."""
    from batchnorm.tools import command

    raise typer.Exit(command.fold(model, data, out, batch_size, steps, unsafe))


@app.command()
def explain(model: _Model, unsafe: _Unsafe = False) -> None:
    """Say in words what the next call of each layer will do."""
    from batchnorm.tools import command

    raise typer.Exit(command.explain(model, unsafe))


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
