"""What the command does: train every row, show progress, report."""

from pathlib import Path
from time import perf_counter

import keras
from rich.console import Console

from batchnorm._progress import progress
from batchnorm.demo import claims, data, plan, report
from batchnorm.demo.training import Run, Trainer


def run(seeds: int, out: Path, quick: bool = False) -> None:
    """Train each row of the plan `seeds` times; print table and words, write files to `out`."""
    started = perf_counter()
    console = Console()
    backend = keras.backend.backend()
    runs = train(plan.quick(claims.compared()) if quick else plan.full(), seeds, console)
    lines = report.rows(runs)
    said = [claims.judge(claim, runs) for claim in claims.CLAIMS]
    console.print(report.table(lines, backend))
    console.print(
        "± is the standard deviation over seeds in the table, and the 95 % interval of the mean "
        "difference between runs of the same seed below. Every kind trains with the same "
        "optimizer and learning rate in a regime. Steps are the median over seeds.",
        style="dim",
    )
    console.print("\nPublished claims:")
    for judgement in said:
        console.print(f"- {judgement}", highlight=False)
    if quick:
        console.print("These runs were cut short by --quick: they show that it works, no more.")
    paths = report.write(out, backend, runs, lines, said)
    console.print(f"\nWrote {', '.join(str(path) for path in paths)}.", soft_wrap=True)
    console.print(f"{len(runs)} trainings in {perf_counter() - started:.0f} seconds.")


def train(todo: plan.Plan, seeds: int, console: Console) -> list[Run]:
    """Runs of every row, with live progress where the console is a terminal."""
    digits = data.load()
    runs = []
    with progress(console) as bar:
        task = bar.add_task("starting", total=len(todo.rows) * seeds)
        for regime, kind in todo.rows:
            name = f"{regime.name}, {plan.KINDS[kind]}"
            bar.update(task, description=f"{name}: compiling")
            trainer = Trainer(digits, regime, kind, todo.widths)
            for seed in range(seeds):

                def show(steps: int, accuracy: float, name: str = name, seed: int = seed) -> None:
                    words = f"{name}, seed {seed}, step {steps}: {100 * accuracy:.1f} %"
                    bar.update(task, description=words)

                runs.append(trainer.run(seed, show))
                bar.advance(task)
            if not console.is_terminal:
                # A log has no live line: one line a row says that work goes on.
                console.print(f"trained: {name}")
    return runs
