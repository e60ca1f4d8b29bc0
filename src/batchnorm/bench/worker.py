"""The process of one question and framework: settings come in as JSON, rows go out, line by line.

    python -m batchnorm.bench.worker

A process for each, because two frameworks in one fight over the cores, because memory settings are
read at the start, and because Keras has one backend. Lines out: {"total": n}, then {"step": words}
before each case, {"row": {...}}, {"said": sentence} for a case that could not be measured.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from batchnorm.bench.plan import Settings


def measure(settings: Settings, tell: Callable[[dict[str, Any]], None]) -> None:
    """Measure every case of a question; what happens is told as it happens."""
    module = importlib.import_module(f"batchnorm.bench.{settings.question}")
    cases = module.cases(settings)
    tell({"total": len(cases)})
    if reason := _composite(settings):
        tell({"said": f"{settings.framework} ran without native kernels. {reason}"})
    for case in cases:
        tell({"step": str(case)})
        try:
            for row in module.measure(case, settings):
                tell({"row": asdict(row)})
        except Exception as error:  # a peer may refuse a type or run out of memory
            where = f"{settings.question}, {settings.framework}".removesuffix(", ")
            lines = str(error).strip().splitlines()
            first = lines[0] if lines else "no message"
            tell({"said": f"{where}: not measured: {case}. {type(error).__name__}: {first}"})


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

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.load(sys.stdin).items()
    }
    measure(Settings(**given), tell)


if __name__ == "__main__":
    main()
