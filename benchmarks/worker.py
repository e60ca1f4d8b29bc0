"""The process of one question and framework: settings come in, rows go out, a line of JSON each.

    python -m benchmarks.worker

A question of another device has its own `clock`, says `why_not` and `composite`, and
{"device": name} comes out.

A process for each, because two frameworks in one fight over the cores, because memory settings are
read at the start, and because Keras has one backend. Lines out: {"total": n}, then {"step": words}
before each case, {"row": {...}}, {"said": sentence} for a case that could not be measured.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.cases import Case, Settings
from benchmarks.rows import Row, compare
from benchmarks.timing import Contest, alternate, clock


def measure(question: Any, settings: Settings, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure every case of a question; what happens is told as it happens."""
    if hasattr(question, "why_not") and (lacking := question.why_not()):
        tell({"said": lacking})
        return
    if hasattr(question, "device"):
        tell({"device": question.device()})
    cases = question.cases(settings)
    tell({"total": len(cases)})
    composite = getattr(question, "composite", lambda: _composite(settings))
    if reason := composite():
        tell({"said": f"{settings.framework} ran without native kernels. {reason}"})
    rows = question.rows if hasattr(question, "rows") else _rows_of(question)
    for case in cases:
        tell({"step": str(case)})
        try:
            for row in rows(case, settings):
                tell({"row": asdict(row)})
        except Exception as error:  # a peer may refuse a type or run out of memory
            where = f"{settings.question}, {settings.framework}".removesuffix(", ")
            lines = str(error).strip().splitlines()
            first = lines[0] if lines else "no message"
            tell({"said": f"{where}: not measured: {case}. {type(error).__name__}: {first}"})


def _rows_of(question: Any) -> Callable[[Case, Settings], Iterator[Row]]:
    """The one loop of every question: all contenders in turns, then each of ours beside each."""

    def rows(case: Case, settings: Settings) -> Iterator[Row]:
        contest: Contest = question.contest(case, settings)
        contenders = {**contest.ours, **contest.peers, **contest.units}
        timed = getattr(question, "clock", clock)
        clocks = {name: timed(call) for name, call in contenders.items()}
        rounds = contest.rounds * settings.repeats
        seconds = contest.longer * settings.seconds
        times = {**contest.before, **alternate(clocks, rounds, seconds)}
        for ours in (*contest.ours, *contest.before):
            for peer in (*contest.peers, *contest.units):
                yield compare(settings, case, times, ours, peer, over=peer in contest.units)

    return rows


def _composite(settings: Settings) -> str | None:
    """Why the framework takes the composite path here, if it does."""
    if not settings.framework:
        return None
    from batchnorm import why_not

    return why_not(settings.framework)


def main() -> None:
    # Frameworks print what they like; the real standard output is for rows alone.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    for line in sys.stdin:
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(line).items()
        }
        job = Settings(**given)
        measure(importlib.import_module(f"benchmarks.questions.{job.question}"), job, tell)


if __name__ == "__main__":
    main()
