"""docs/moving-from-tf1.md: every block of Python on the page runs, one after the other."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "moving-from-tf1.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = list(re.finditer(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert len(blocks) > 5
    names = {"__name__": "page"}
    try:
        for block in blocks:
            first = block.string.count("\n", 0, block.start(1))
            code = compile("\n" * first + block[1], str(PAGE), "exec")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tf_slim's and tf_keras' own
                exec(code, names)
    finally:
        if patch := names.get("patch"):
            patch.undo()
