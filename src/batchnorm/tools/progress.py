"""A live bar over batches, where somebody can see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def shown(items: Iterable[Any], words: str, total: int | None) -> Iterator[Any]:
    """The items, with a bar on the terminal (standard error) that goes away at the end.

    Without a terminal, or without rich (the extra `cli`), there is none.
    """
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        yield from items
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    from batchnorm._progress import progress

    with progress(console) as bar:
        yield from bar.track(items, total=total, description=words)
