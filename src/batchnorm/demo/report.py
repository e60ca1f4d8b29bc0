"""What the demo shows and leaves behind: table, words, plot, rows."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev

from matplotlib import rcParams
from matplotlib.figure import Figure
from rich.table import Table

from batchnorm.demo.claims import Judgement
from batchnorm.demo.plan import KINDS
from batchnorm.demo.training import TARGET, Run


@dataclass(frozen=True)
class Row:
    """One line of the table: the runs of one kind in one regime.

    Attributes:
        accuracy: Mean test accuracy at the end, in percent.
        spread: Standard deviation of it over seeds; 0 for one seed.
        steps: Median steps to 95 %, where a run that never got there counts as infinitely many;
            None when the median never got there.
        reached: Runs that got there.
        milliseconds: Median time of a step, without compilation.
    """

    regime: str
    kind: str
    seeds: int
    accuracy: float
    spread: float
    steps: float | None
    reached: int
    milliseconds: float


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each regime and kind, in the order in which they ran."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.regime.name, run.kind), []).append(run)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Run]) -> Row:
    accuracies = [100 * run.accuracy for run in group]
    reached = [run.steps_to_target for run in group]
    middle = median(float("inf") if steps is None else steps for steps in reached)
    return Row(
        regime=group[0].regime.name,
        kind=group[0].kind,
        seeds=len(group),
        accuracy=mean(accuracies),
        spread=stdev(accuracies) if len(group) > 1 else 0.0,
        steps=None if middle == float("inf") else middle,
        reached=sum(steps is not None for steps in reached),
        milliseconds=median(time for run in group for time in run.milliseconds),
    )


def table(lines: Sequence[Row], backend: str) -> Table:
    """The rows as a table for the terminal."""
    result = Table(title=f"Handwritten digits, Keras on {backend}", title_justify="left")
    result.add_column("batches", no_wrap=True)
    result.add_column("kind", no_wrap=True)
    for name in ("accuracy, %", "to 95 %", "reached", "ms/step"):
        result.add_column(name, justify="right", no_wrap=True)
    regime = ""
    for line in lines:
        if regime and line.regime != regime:
            result.add_section()
        result.add_row(
            "" if line.regime == regime else line.regime,
            KINDS[line.kind],
            f"{line.accuracy:.1f} ± {line.spread:.1f}",
            "never" if line.steps is None else f"{line.steps:.0f}",
            f"{line.reached} of {line.seeds}",
            f"{line.milliseconds:.2f}",
        )
        regime = line.regime
    return result


def write(
    out: Path, backend: str, runs: Sequence[Run], lines: Sequence[Row], said: Sequence[Judgement]
) -> list[Path]:
    """Write plot, rows and everything measured; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "accuracy.png", out / "rows.csv", out / "runs.json"]
    _plot(paths[0], runs, backend)
    with paths[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(lines[0])))
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)
    everything = {
        "backend": backend,
        "claims": [asdict(judgement) for judgement in said],
        "runs": [asdict(run) for run in runs],
    }
    paths[2].write_text(json.dumps(everything, indent=1) + "\n")
    return paths


def _plot(path: Path, runs: Sequence[Run], backend: str) -> None:
    """Test accuracy over steps: a panel for each regime, a line for each kind."""
    regimes = {run.regime.name: run.regime for run in runs}
    colors = dict(zip(KINDS, rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    # A bare figure, not pyplot: no window, no display, no global state.
    figure = Figure(figsize=(4 * len(regimes), 4), layout="constrained")
    panels = figure.subplots(1, len(regimes), sharey=True, squeeze=False)
    for panel, (name, regime) in zip(panels[0], regimes.items(), strict=True):
        steps = range(regime.every, regime.steps + 1, regime.every)
        for kind, label in KINDS.items():
            curves = [
                run.accuracies for run in runs if run.regime.name == name and run.kind == kind
            ]
            if not curves:
                continue
            columns = list(zip(*curves, strict=True))
            panel.plot(steps, [mean(column) for column in columns], label=label, color=colors[kind])
            low, high = [min(column) for column in columns], [max(column) for column in columns]
            panel.fill_between(steps, low, high, color=colors[kind], alpha=0.15, linewidth=0)
        panel.axhline(TARGET, color="gray", linewidth=0.8, linestyle=":")
        panel.set(title=name, ylim=(0, 1))
    panels[0][0].set_ylabel("test accuracy")
    handles = {
        label: line
        for panel in panels[0]
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(KINDS))
    figure.supxlabel(f"steps (Keras on {backend}; mean and range over seeds)", fontsize="medium")
    figure.savefig(path, dpi=120)
