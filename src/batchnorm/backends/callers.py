"""Who is calling, where a framework leaves no other mark of what it is doing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType


def callers(file: str) -> Iterator[FrameType]:
    """The frames of functions in a file of this name that wait for the one that runs."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(file):
            yield frame
        frame = frame.f_back
