"""The commands of the tools: `batchnorm inspect`, `reestimate`, `repair`, `fold`, `explain`.

Each loads a model's file, or calls the function that makes it, works, prints, and says how it
ended. Exit codes: 0 all is well, 1 the
inspector found what `--fail-on` names (or a layer was not folded, or something is still poisoned),
2 the arguments are wrong or a file cannot be read. A command imports its tool when it runs, so that
`--help` answers at once.
"""

import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

OK, FOUND, WRONG = 0, 1, 2
_LOST = "optimizer and the compilation of MODEL are not in it"


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


_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A saved Keras model (.keras), or module:function, which returns a Keras model or a "
        "PyTorch module.",
    ),
]
_Data = Annotated[
    str, typer.Option(help="A .npy or .npz file, or module:function, which returns the data.")
]
_MaybeData = Annotated[str | None, typer.Option(help="As for inspect; may be left out.")]
_Out = Annotated[
    Path, typer.Option(help="Where to save the new model: .keras, or .pt for a state_dict.")
]
_BatchSize = Annotated[int, typer.Option(min=1, help="Rows of a batch, where data is an array.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="Batches to read at most.")]
_Unsafe = Annotated[
    bool, typer.Option("--unsafe", help="Load models that run code of their own (lambdas).")
]


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

    def work(console: Console) -> int:
        from batchnorm.tools.inspection import inspect as inspect_
        from batchnorm.tools.saving import check_ending, check_place

        for option, path in (("html", html), ("json", json)):
            if path is not None:
                check_place(path, f"--{option}")
                check_ending(path, f"--{option}", f".{option}")
        loaded, _, given = _loaded(model, data, unsafe)
        report = inspect_(loaded, given, steps, batch_size=batch_size)
        console.print(report)
        for path in filter(None, (html, json)):
            console.print(f"Wrote {report.save(path)}.", soft_wrap=True)
        return FOUND if fail_on != "never" and report.alarms(fail_on.value) else OK

    _end_with(work)


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

    def work(console: Console) -> int:
        from batchnorm.tools.reestimation import reestimate as reestimate_

        loaded, source, given = _loaded(model, data, unsafe, out)
        done = reestimate_(
            loaded,
            given,
            steps=steps,
            method=method.value,
            batch_size=batch_size,
            layer_by_layer=layer_by_layer,
        )
        console.print(done.table())
        return _save(loaded, out, console, source)

    _end_with(work)


def repair(
    model: _Model,
    out: _Out,
    data: _MaybeData = None,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    unsafe: _Unsafe = False,
) -> None:
    """Replace moving statistics that are NaN, infinite or negative."""

    def work(console: Console) -> int:
        from batchnorm.tools.repairing import repair as repair_

        loaded, source, given = _loaded(model, data, unsafe, out)
        done = repair_(loaded, given, steps, batch_size=batch_size)
        console.print(str(done), markup=False, highlight=False, soft_wrap=True)
        _save(loaded, out, console, source)
        return FOUND if done.still or done.parameters else OK

    _end_with(work)


def fold(
    model: _Model,
    out: _Out,
    data: _MaybeData = None,
    batch_size: _BatchSize = 32,
    steps: _Steps = None,
    unsafe: _Unsafe = False,
) -> None:
    """Make a model without batch normalization, for inference."""

    def work(console: Console) -> int:
        from batchnorm.tools.folding import fold as fold_
        from batchnorm.tools.norms import is_keras
        from batchnorm.tools.saving import is_compiled

        loaded, source, given = _loaded(model, data, unsafe, out)
        if not is_keras(loaded):
            raise ValueError(
                f"batchnorm: MODEL must be a Keras model to be folded into a file; got "
                f"{type(loaded).__name__}. In Python, batchnorm.fold(model, data) returns a "
                "torch.fx.GraphModule; save it with torch.export or torch.save."
            )
        folded = fold_(loaded, given, steps, batch_size=batch_size)
        console.print(folded.folding.table())
        _save(folded, out, console)
        if is_compiled(source, loaded):
            console.print(f"It is for inference: the {_LOST}.", soft_wrap=True)
        return FOUND if folded.folding.refused else OK

    _end_with(work)


def explain(model: _Model, unsafe: _Unsafe = False) -> None:
    """Say in words what the next call of each layer will do."""

    def work(console: Console) -> int:
        from batchnorm.tools.explanation import explain as explain_

        words = explain_(_loaded(model, None, unsafe)[0])
        console.print(words, markup=False, highlight=False, soft_wrap=True)
        return OK

    _end_with(work)


def _loaded(
    model: str, data: str | None, unsafe: bool, out: Path | None = None
) -> tuple[Any, Path | None, Any]:
    """The model, the file that it is from, and the data; the place of `--out` is checked first."""
    from batchnorm.tools.loading import fitted, load_data, load_model
    from batchnorm.tools.saving import check_out, check_place

    if out is not None:
        check_place(out, "--out")
    loaded, source = load_model(model, unsafe)
    if out is not None:
        check_out(loaded, out)
    return loaded, source, None if data is None else fitted(loaded, load_data(data))


def _end_with(work: Callable[[Console], int]) -> None:
    """Ends with the code of some work; a wrong argument, or file, is one sentence and code 2."""
    try:
        code = work(Console())
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        console = Console(stderr=True)
        console.print(_sentence(error), markup=False, highlight=False, soft_wrap=True)
        code = WRONG
    raise typer.Exit(code)


def _sentence(error: Exception) -> str:
    """An error of ours as it is; of one that the model raised, its kind and its first line."""
    from batchnorm.tools.forward import run_model

    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = Path(__file__).parents[1]
    if run_model.__code__ not in codes or ours in Path(codes[-1].co_filename).parents:
        return str(error)
    line = next((one.strip() for one in str(error).splitlines() if one.strip()), "")
    return (
        f"batchnorm: --data must be what the model can be called with; it raised "
        f"{type(error).__name__}: {line.rstrip('.')}. Data are rows of examples: one example needs "
        "an axis in front, x[None]."
    )


def _save(model: Any, out: Path, console: Console, source: Path | None = None) -> int:
    from batchnorm.tools.saving import is_archive, save

    save(model, out, source)
    console.print(f"Wrote {out}.", soft_wrap=True)
    if source is not None and not is_archive(source):
        console.print(f"The {_LOST}: only .keras files keep them.", soft_wrap=True)
    return OK
