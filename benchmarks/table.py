"""Prints the committed rows as Markdown tables: python benchmarks/table.py [file.csv ...]

With --write, puts them into docs/performance.md between its two marks.
"""

import sys
from pathlib import Path

from batchnorm.bench.bars import bar_of, verdicts
from batchnorm.bench.plan import QUESTIONS
from batchnorm.bench.report import cells
from batchnorm.bench.row import Row, read

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN = "<!-- from benchmarks/*.csv by benchmarks/table.py -->"
END = "<!-- end of the tables -->"
HEADER = "| case | size | MB | layout | dtype | ours, ms | peer | peer, ms | ratio | bar |"
RULE = "|---|---|---|---|---|---|---|---|---|---|"


def render(paths: list[Path]) -> str:
    """The bars first, then the rows of each question, then the machines they were measured on."""
    measured = read(paths)
    rows = [row for row, _ in measured]
    if not rows:
        return "No rows are committed yet."
    parts = ["\n".join(bars(rows))]
    for question, title in QUESTIONS.items():
        some = [row for row in rows if row.question == question]
        if some:
            lines = ["| " + " | ".join(cells(row)) + " |" for row in some]
            parts.append("\n".join([f"### {title}", "", HEADER, RULE, *lines]))
    machines = dict.fromkeys(tuple(machine.items()) for _, machine in measured)
    words = [", ".join(f"{name} {value}" for name, value in one if value) for one in machines]
    parts.append("Measured on: " + "; ".join(words) + ".")
    return "\n\n".join(parts)


def bars(rows: list[Row]) -> list[str]:
    """One line for each promise that a row is about."""
    lines = ["| what | bar | worst | geometric mean | rows that meet it | verdict |"]
    lines.append("|---|---|---|---|---|---|")
    for one in verdicts([row for row in rows if bar_of(row)]):
        kept = sum(one.bar.met(row) for row in one.rows)
        mean = "" if one.bar.mean is None else f", mean >= {one.bar.mean:g}"
        lines.append(
            f"| {one.bar.words} | {one.bar}{mean} | {one.worst:.2f} | {one.geometric_mean:.2f} | "
            f"{kept} of {len(one.rows)} | {'met' if one.met else 'missed'} |"
        )
    return lines


def main(arguments: list[str]) -> None:
    named = [Path(one) for one in arguments if not one.startswith("--")]
    tables = render(named or sorted(HERE.glob("*.csv")))
    if "--write" not in arguments:
        print(tables)
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
