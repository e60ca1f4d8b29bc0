"""Our docstrings as Markdown: what the reference pages make of sections that only we have.

`Args`, `Returns`, `Raises` and `Attributes` are griffe's own. Any other indented block under a line
that ends in a colon is a list where its lines read `name: words`, else a formula or a program.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

OWN = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:")
_ENTRY = re.compile(r"^([\w`\"][\w`\", ]*): (.*)$")


class Prose(griffe.Extension):
    """Turns the docstring of everything that griffe finds."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring with its own sections as lists and blocks of code, and links to pages."""
    text = re.sub(r"\bdocs/([\w-]+)\.md", r"[\1](../\1.md)", text)
    lines = text.splitlines()
    result: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        while end < len(lines) and (lines[end].startswith("    ") or _open(lines, end)):
            end += 1
        block = lines[at + 1 : end]
        at = end
        if line in OWN or line.startswith(" ") or not block:
            result += [line, *block]
        elif line.endswith(":"):
            title = f"**{line}**" if " " not in line else line
            result += [title, "", *turned(block), ""]
        elif _ENTRY.match(line):  # entries that are not indented themselves
            result += ["", *turned([line, *block], indent=0)]
        else:
            result += [line, *block]
    return "\n".join(result)


def _open(lines: list[str], at: int) -> bool:
    """Whether an empty line stands inside of an indented block."""
    return not lines[at] and at + 1 < len(lines) and lines[at + 1].startswith("    ")


def turned(block: list[str], indent: int = 4) -> list[str]:
    """Indented lines as a list of entries, or as code."""
    block = [line[indent:] for line in block]
    if not _ENTRY.match(next(filter(None, block))):
        return ["```", *block, "```"]
    result: list[str] = []
    for line in block:
        found = None if line.startswith(" ") else _ENTRY.match(line)
        result.append(f"- **{found[1]}**: {found[2]}" if found else f"    {line.strip()}")
    return result
