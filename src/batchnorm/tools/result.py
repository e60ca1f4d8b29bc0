"""What every tool that reports returns: `str`, `table()`, `to_dict()`, `to_json()`."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


class Result:
    """The base of the tools' results, which are dataclasses.

    `str(result)` is sentences, one per line; `rich.print(result)` shows the table.
    """

    def sentences(self) -> list[str]:
        """What was found or done, in words; never empty."""
        raise NotImplementedError

    def table(self) -> Table:
        """The numbers as a table for the terminal.

        Raises:
            RuntimeError: rich is not installed.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; numbers that are not finite are None."""
        values: dict[str, Any] = plain(self)
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def __rich__(self) -> Any:
        return self.table()


def new_table(title: str) -> Table:
    """A table without columns.

    Raises:
        RuntimeError: rich is not installed.
    """
    try:
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "table: rich must be installed; got no module 'rich'. Run: pip install "
            "'batchnorm[cli]', or print the result, which is sentences."
        ) from error
    return Table(title=title, title_justify="left")


def plain(value: Any) -> Any:
    """A tree of dictionaries, lists, texts and numbers; fields without a `repr` are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value) if one.repr}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
