"""A live bar over batches, where somebody can see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console

from batchnorm._progress import progress


def shown(items: Iterable[Any], words: str, total: int | None) -> Iterator[Any]:
    """The items, with a bar on the terminal (standard error) that goes away at the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    with progress(console) as bar:
        yield from bar.track(items, total=total, description=words)
