"""What is shown and left behind: tables, plots of ratio against size, and docs' table of bars."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.bars import BARS, bar_of, verdicts
from benchmarks.cases import QUESTIONS
from benchmarks.rows import Row, read

MEASURED = Path(__file__).parent / "measured"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN = "<!-- from benchmarks/measured/*.csv by `python -m benchmarks --page` -->"
END = "<!-- end of the table -->"


def table(rows: Sequence[Row]) -> Table:
    """The rows of one question as a table for the terminal."""
    result = Table(title=QUESTIONS[rows[0].question], title_justify="left")
    for name in ("case", "size", "MB", "layout", "dtype", "ours, ms", "peer", "peer, ms", "ratio"):
        number = name in ("MB", "ours, ms", "peer, ms", "ratio")
        result.add_column(name, justify="right" if number else "left", no_wrap=True)
    result.add_column("bar", no_wrap=True)
    previous = None
    for row in rows:
        group = (row.framework, row.memory, row.variant, row.what)
        if row.question != "kernels":
            if previous is not None and group != previous:
                result.add_section()
            previous = group
        result.add_row(*cells(row))
    return result


def cells(row: Row) -> tuple[str, ...]:
    """What the table says of a row; times are minimum / median, bars are for the minima."""
    bar = bar_of(row)
    verdict = "" if bar is None else f"{bar} {'met' if bar.met(row) else 'missed'}"
    return (
        case(row),
        row.size,
        f"{row.megabytes:.3g}",
        row.layout,
        row.dtype,
        f"{row.ours_min_ms:.3g} / {row.ours_median_ms:.3g}",
        row.peer,
        f"{row.peer_min_ms:.3g} / {row.peer_median_ms:.3g}",
        f"{row.ratio:.2f}",
        verdict,
    )


def case(row: Row) -> str:
    """Who did what, as far as it is not the same for the whole question."""
    variant = "" if row.variant == "plain" else row.variant
    contender = "" if row.ours in ("ours", row.what) else row.ours
    memory = "" if row.memory == "default" else f"memory {row.memory}"
    return ", ".join(part for part in (row.framework, variant, row.what, contender, memory) if part)


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plot(path: Path, rows: Sequence[Row], processor: str) -> None:
    """Ratio over megabytes: a panel for each framework and kind of call, a line for each peer."""
    from matplotlib.figure import Figure

    frameworks = list(dict.fromkeys(row.framework for row in rows))
    whats = list(dict.fromkeys(row.what for row in rows))
    # A bare figure, not pyplot: no window, no display, no global state.
    size = (2.5 + 6.5 * len(whats), 1 + 3.6 * len(frameworks))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(frameworks), len(whats), squeeze=False)
    for line, framework in zip(panels, frameworks, strict=True):
        for panel, what in zip(line, whats, strict=True):
            some = [row for row in rows if (row.framework, row.what) == (framework, what)]
            _panel(panel, some)
            panel.set_title(", ".join(part for part in (framework, what) if part), fontsize=9)
    figure.supxlabel("megabytes of x", fontsize="medium")
    figure.supylabel("ratio of the minimum times", fontsize="medium")
    figure.suptitle(f"{QUESTIONS[rows[0].question]}\n{processor}", fontsize="medium")
    figure.savefig(path, dpi=120)


def _panel(panel: Any, rows: Sequence[Row]) -> None:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(_label(row), []).append((row.megabytes, row.ratio))
    sizes = sorted({row.megabytes for row in rows})
    for label, points in curves.items():
        dashes = "--" if "bfloat16" in label else "-"
        x, y = zip(*sorted(points), strict=True)
        panel.plot(x, y, dashes, marker="o", markersize=3, linewidth=1, label=label)
    panel.axhline(1, color="gray", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(sizes)
    panel.xaxis.set_major_formatter("{x:.3g}")
    panel.xaxis.set_minor_formatter("")
    ticks = (0.25, 0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
    low, high = panel.get_ylim()
    panel.set_yticks([tick for tick in ticks if low <= tick <= high] or [1])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    if curves:
        panel.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.3)


def _label(row: Row) -> str:
    variant = "" if row.variant == "plain" else row.variant
    peer = "" if row.question == "kernels" else f"{row.ours} and {row.peer}"
    memory = "" if row.memory == "default" else f"memory {row.memory}"
    parts = (variant, peer.removeprefix("ours and "), f"channels {row.layout}", row.dtype, memory)
    return ", ".join(part for part in parts if part)


def write_page() -> None:
    """Put the table of the committed rows' bars into docs/performance.md, between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(bars_table(sorted(MEASURED.glob("*.csv"))))
    PAGE.write_text(f"{before}{BEGIN}\n\n{lines}\n\n{END}{after}")


def bars_table(paths: Sequence[Path]) -> list[str]:
    """Every bar in a line of Markdown, with a verdict for each processor that has rows of it."""
    measured = read(paths)
    judged: dict[str, dict[Any, str]] = {}
    for processor in dict.fromkeys(machine["cpu"] for _, machine in measured):
        rows = [row for row, machine in measured if machine["cpu"] == processor]
        judged[processor] = {id(verdict.bar): verdict.short for verdict in verdicts(rows)}
    lines = ["| what | bar | " + " | ".join(judged) + " |", "|---" * (2 + len(judged)) + "|"]
    for bar in BARS:
        cells = [verdict.get(id(bar), "not measured") for verdict in judged.values()]
        lines.append(f"| {bar.words} | {bar} | " + " | ".join(cells) + " |")
    return lines
