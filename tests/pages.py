"""The blocks of Python on a page, to be run as they stand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The page's blocks, each behind as many empty lines as stand before it, for tracebacks."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, found.start(1)) + found[1] for found in _BLOCK.finditer(text)
    ]


def run(page: Path, names: dict[str, Any]) -> int:
    """Runs the blocks one after the other in one namespace; returns how many there were."""
    found = blocks(page)
    for block in found:
        exec(compile(block, str(page), "exec"), names)
    return len(found)


def module(file: Path) -> ModuleType:
    """A file of Python outside of every package, imported."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
