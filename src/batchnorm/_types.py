"""Types of arguments, for whoever checks them: words that an option takes, and x's own type."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar

T = TypeVar("T")  # a tensor of some framework

Statistics: TypeAlias = Literal["auto", "batch", "moving"]
UpdateStatistics: TypeAlias = Literal["auto"] | bool
Activation: TypeAlias = Literal["relu"] | None
GhostOrder: TypeAlias = Literal["strided", "chunks"]
OnNonfinite: TypeAlias = Literal["skip", "propagate", "raise"]
ZeroDebias: TypeAlias = Literal["mean", "both"] | bool
