"""A process for each question and framework, then tables, words and files."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine, report, rows
from benchmarks.bars import verdicts
from benchmarks.cases import MEMORY, Settings
from benchmarks.rows import Row

ROOT = Path(__file__).parents[1]
WIDE = 200  # characters


def run(jobs: Sequence[Settings], out: Path) -> bool:
    """Measure every job and report; return whether every process came to its end."""
    started, load = perf_counter(), machine.load()
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # a log is not folded
    found, said, devices, ended = _measure_all(jobs, console)
    by_question = {
        question: [one for one in found if one.question == question]
        for question in dict.fromkeys(one.question for one in found)
    }
    for some in by_question.values():
        console.print(report.table(some))
    judged = verdicts(found)
    if any(job.quick for job in jobs):
        said.append("These runs were cut short by --quick: they show that it works, no more.")
    said += filter(None, [machine.busy(load)])
    for sentence in said:
        console.print(f"- {sentence}", highlight=False, soft_wrap=True)
    if judged:
        console.print(f"\nWhat the project promises, and what {machine.processor()} showed:")
    for verdict in judged:
        console.print(f"- {verdict}", highlight=False, soft_wrap=True)
    if found:
        paths = write(out, by_question, machine.describe(load), devices)
        console.print(f"\nWrote {', '.join(str(path) for path in paths)}.", soft_wrap=True)
    console.print(f"{len(found)} rows in {perf_counter() - started:.0f} seconds.")
    return ended


def write(
    out: Path, found: dict[str, list[Row]], described: dict[str, str], devices: dict[str, str]
) -> list[Path]:
    """A CSV file and a plot for each question; return the paths.

    Args:
        devices: what measured, by question, where it was not the processor.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for question, some in found.items():
        path = out / f"{question}.csv"
        by = {**described, "cpu": devices.get(question, described["cpu"])}
        rows.write(path, some, by)
        paths.append(path)
        if report.can_plot():
            picture = path.with_suffix(".png")
            report.plot(picture, some, by["cpu"])
            paths.append(picture)
    return paths


def _measure_all(
    jobs: Sequence[Settings], console: Console
) -> tuple[list[Row], list[str], dict[str, str], bool]:
    """Rows, sentences, devices by question, and whether every process ended; with progress."""
    found: list[Row] = []
    devices: dict[str, str] = {}
    said: list[str] = []
    ended = True
    if not report.can_plot():
        said.append("No plots: matplotlib is missing. Run: pip install matplotlib")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
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
                    found.append(Row(**line["row"]))
                elif "device" in line:
                    devices[job.question] = line["device"]
                elif "said" in line:
                    said.append(line["said"])
                else:
                    ended = False
                    said.append(f"{name} stopped: {line['stopped']}")
            bar.remove_task(task)
            if not console.is_terminal:
                # A log has no live line: one line a process says that work goes on.
                console.print(f"measured: {name}")
    return found, list(dict.fromkeys(said)), devices, ended


def process(*jobs: Settings) -> Iterator[dict[str, Any]]:
    """What one process for some jobs tells, line by line; {"stopped": words} if it did not end.

    Its environment is the first job's.
    """
    with tempfile.TemporaryFile("w+") as errors:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment(jobs[0]), cwd=ROOT,
        ) as worker:  # fmt: skip
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                worker.stdin.writelines(json.dumps(asdict(job)) + "\n" for job in jobs)
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
    if job.framework:
        result["KERAS_BACKEND"] = job.framework
    return result


def _name(job: Settings) -> str:
    memory = "" if job.memory == "default" else f"memory {job.memory}"
    return ", ".join(part for part in (job.question, job.framework, memory) if part)


def _last(lines: Iterable[str]) -> str:
    """The last line with words in it."""
    return next((line.strip() for line in reversed(list(lines)) if line.strip()), "")
