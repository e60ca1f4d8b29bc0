"""The framework that a process measures."""

from __future__ import annotations

import importlib
from typing import Any


def engine(framework: str) -> Any:
    """The module that measures with a framework; importing it imports the framework."""
    return importlib.import_module(f"benchmarks.with_{framework}")
