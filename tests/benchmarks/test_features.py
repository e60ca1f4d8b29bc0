"""The table of docs/features.md: its rows, and what can be measured in a moment."""

from __future__ import annotations

import pytest

from benchmarks.features.__main__ import ROWS, word
from benchmarks.features.engines import engine
from benchmarks.features.truth import start_anew
from benchmarks.processes import ROOT

# Errors differ from processor to processor, and one of them compiles; a process group stays.
QUICK = [row for row in ROWS if not row.startswith(("error", "synchronized"))]


def page():
    """Row of the table -> the cells of each engine, by its name."""
    lines = (ROOT / "docs" / "features.md").read_text().splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("| | batchnorm "))
    names = [cell.split()[0] for cell in lines[head].strip("| ").split(" | ")]
    table = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        row, *cells = line.strip("| ").split(" | ")
        table[row.partition(" (")[0]] = dict(zip(names, cells, strict=True))
    return table


def test_the_page_has_every_row():
    assert list(page()) == list(ROWS)


@pytest.mark.parametrize("row", QUICK)
def test_the_page_says_of_torch_what_is_measured(row):
    start_anew()
    try:
        measured = ROWS[row](engine("torch"))
    except Exception:  # as the program takes it
        measured = False
    assert word(measured) == page()[row]["torch"]
