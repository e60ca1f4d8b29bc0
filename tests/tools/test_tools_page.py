"""docs/tools.md: every block of Python on the page runs, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


@pytest.mark.keras
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = list(re.finditer(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert len(blocks) > 1
    names = {"__name__": "page"}
    for block in blocks:
        first = block.string.count("\n", 0, block.start(1))
        exec(compile("\n" * first + block[1], str(PAGE), "exec"), names)
    said = str(names["result"])
    assert said.startswith("0: 5 channels went into first; set momentum=0.9, epsilon=1e-05, ")
