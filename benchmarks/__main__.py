"""Measures batch normalization here: ours, the frameworks' own, and a copy of the tensor.

python -m benchmarks --question small kernels
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases

# Options that take several words: which, and what they are about. All, if none is named.
LISTS = {
    "question": (tuple(cases.QUESTIONS), "what to measure"),
    "framework": (cases.FRAMEWORKS, "where to measure it"),
    "dtype": (cases.DTYPES, "types of x"),
    "layout": (cases.LAYOUTS, "where the channels are"),
    "modes": (cases.MODES, "what the question modes is about"),
}


def parser() -> argparse.ArgumentParser:
    """Every option; `--help` imports no framework."""
    result = argparse.ArgumentParser("benchmarks", description=__doc__.partition("\n")[0])
    for name, (words, about) in LISTS.items():
        _several(result, name, words, f"{about}; all if none is named")
    _several(result, "memory", tuple(cases.MEMORY), "page faults: see docs/performance.md")
    result.add_argument("--sizes", nargs="+", type=_size, help="such as 32x64 64x64x56x56")
    result.add_argument("--repeats", type=int, default=21, help="rounds over the contenders")
    result.add_argument(
        "--seconds", type=float, default=10.0, help="a case that took longer stops after five"
    )
    result.add_argument(
        "--out", type=Path, default=Path("build/measured"), help="folder for rows and plots"
    )
    result.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works")
    result.add_argument(
        "--page",
        action="store_true",
        help="put the committed rows' verdicts into the docs, no more",
    )
    return result


def _several(to: argparse.ArgumentParser, name: str, words: Sequence[str], help: str) -> None:
    to.add_argument(f"--{name}", choices=words, nargs="+", action="extend", help=help)


def _size(text: str) -> str:
    try:
        return str(cases.size(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def missing(framework: str) -> str | None:
    """Sentence that says that a framework is left out, or None."""
    lacking = [name for name in (framework, "keras") if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    return (
        f"benchmarks: {framework} is left out, without {', '.join(lacking)}. "
        f"Run: pip install '.[{framework}]'"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a run: 1 where nothing could be measured, or a process died."""
    given = parser().parse_args(arguments)
    # Imported here: `--help` needs none of it.
    from benchmarks import processes, report

    if given.page:
        report.write_page()
        return 0
    chosen = {name: tuple(getattr(given, name) or words) for name, (words, _) in LISTS.items()}
    complaints = {one: missing(one) for one in chosen["framework"]}
    for complaint in filter(None, complaints.values()):
        print(complaint, file=sys.stderr)
    jobs = cases.jobs(
        questions=chosen["question"],
        frameworks=tuple(one for one in chosen["framework"] if complaints[one] is None),
        memories=tuple(given.memory or ["default"]),
        sizes=tuple(given.sizes or (cases.QUICK if given.quick else cases.FULL)),
        dtypes=chosen["dtype"],
        layouts=chosen["layout"],
        modes=chosen["modes"],
        repeats=min(given.repeats, 3) if given.quick else given.repeats,
        seconds=min(given.seconds, 2.0) if given.quick else given.seconds,
        quick=given.quick,
    )
    return 0 if jobs and processes.run(jobs, given.out) else 1


if __name__ == "__main__":
    sys.exit(main())
