"""The command itself: a process for each question and framework, then tables, words and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from batchnorm._progress import progress
from batchnorm.bench import copies, machine, report, row
from batchnorm.bench.bars import verdicts
from batchnorm.bench.plan import MEMORY, Settings
from batchnorm.bench.row import Row

WIDE = 200  # characters


def run(jobs: Sequence[Settings], out: Path) -> bool:
    """Measure every job and report; return whether every process came to its end."""
    started, load = perf_counter(), machine.load()
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # a log is not folded
    rows, said, ended = _measure_all(jobs, console)
    for question in dict.fromkeys(one.question for one in rows):
        console.print(report.table([one for one in rows if one.question == question]))
    for sentence in said:
        console.print(f"- {sentence}", highlight=False, soft_wrap=True)
    judged = verdicts(rows)
    if judged:
        console.print("\nWhat the project promises, and what was measured here:")
    for verdict in judged:
        console.print(f"- {verdict}", highlight=False, soft_wrap=True)
    if complaint := machine.busy(load):
        console.print(complaint, highlight=False, soft_wrap=True)
    if any(job.quick for job in jobs):
        console.print("These runs were cut short by --quick: they show that it works, no more.")
    if rows:
        paths = write(out, rows, load)
        console.print(f"\nWrote {', '.join(str(path) for path in paths)}.", soft_wrap=True)
    console.print(f"{len(rows)} rows in {perf_counter() - started:.0f} seconds.")
    return ended


def write(out: Path, rows: Sequence[Row], load: float) -> list[Path]:
    """A CSV file and a plot for each question; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    described = machine.describe(load)
    paths = []
    for question in dict.fromkeys(one.question for one in rows):
        some = [one for one in rows if one.question == question]
        path = out / f"{question}.csv"
        row.write(path, some, described)
        paths.append(path)
        if report.can_plot():
            picture = path.with_suffix(".png")
            report.plot(picture, some)
            paths.append(picture)
    return paths


def _measure_all(jobs: Sequence[Settings], console: Console) -> tuple[list[Row], list[str], bool]:
    """Rows, sentences, and whether every process came to its end; with live progress."""
    rows: list[Row] = []
    said: list[str] = []
    ended = True
    if not report.can_plot():
        said.append("No plots: matplotlib is missing. Run: pip install 'batchnorm[demo]'")
    with progress(console) as bar:
        for job in jobs:
            name = _name(job)
            task = bar.add_task(f"{name}: starting", total=None)
            steps = 0
            for line in process(job):
                if "total" in line:
                    bar.update(task, total=line["total"])
                elif "step" in line:
                    bar.update(task, description=f"{name}: {line['step']}", completed=steps)
                    steps += 1
                elif "row" in line:
                    rows.append(Row(**line["row"]))
                elif "said" in line:
                    said.append(line["said"])
                else:
                    ended = False
                    said.append(f"{name} stopped: {line['stopped']}")
            bar.remove_task(task)
            if not console.is_terminal:
                # A log has no live line: one line a process says that work goes on.
                console.print(f"measured: {name}")
    return rows, list(dict.fromkeys(said)), ended


def process(job: Settings) -> Iterator[dict[str, Any]]:
    """What the process of a job tells, line by line; {"stopped": words} where it did not end."""
    with tempfile.TemporaryFile("w+") as errors:
        arguments = [sys.executable, "-m", "batchnorm.bench.worker"]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            arguments, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment(job)
        ) as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                json.dump(asdict(job), worker.stdin)
                worker.stdin.close()
                yield from map(json.loads, worker.stdout)
            except BaseException:  # an interrupt ends the process too
                worker.kill()
                raise
        if worker.returncode != 0:
            errors.seek(0)
            yield {"stopped": _last(errors) or f"exit code {worker.returncode}"}


def environment(job: Settings) -> dict[str, str]:
    """What a process of this job sees."""
    result = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, **MEMORY[job.memory]}
    if job.question == "kernels":
        result |= copies.ENVIRONMENT
    if job.framework:
        result["KERAS_BACKEND"] = job.framework
    return result


def _name(job: Settings) -> str:
    memory = "" if job.memory == "default" else f"memory {job.memory}"
    return ", ".join(part for part in (job.question, job.framework, memory) if part)


def _last(lines: Iterable[str]) -> str:
    """The last line with words in it."""
    return next((line.strip() for line in reversed(list(lines)) if line.strip()), "")
