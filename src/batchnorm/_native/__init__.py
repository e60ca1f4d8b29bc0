"""The native kernels: where they are, and why they are not used where they are not."""

from __future__ import annotations


def why_not() -> str | None:
    """A sentence that says why there is no fused kernel here; None where there is one."""
    return "The native kernels are not part of this version."
