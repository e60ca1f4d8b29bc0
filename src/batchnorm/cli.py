"""The command `batchnorm`: names; each stands beside what it runs.

Nothing heavy is imported until a command needs it, so `--help` answers at once.
"""

from typing import Annotated

import typer

from batchnorm import __version__
from batchnorm.demo.command import demo
from batchnorm.tools.command import explain, fold, inspect, reestimate, repair

app = typer.Typer(
    name="batchnorm",
    help="Batch normalization in every mode, on TensorFlow, JAX and PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, inspect, reestimate, repair, fold, explain):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchnorm {__version__}")
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
