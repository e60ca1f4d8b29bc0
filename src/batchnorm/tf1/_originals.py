"""What the originals would have done, where it has left a trace; no framework is needed to say."""

from __future__ import annotations

from typing import Any

# rank -> the axes that the originals' fused kernel takes
_FUSED_AXES = {4: (1, 3), 5: (1, 4)}


def takes_fused(rank: int | None, dtype: str, axis: Any, composed: Any) -> bool:
    """Whether the originals' fused kernel takes this: then the moving variance is unbiased (D15).

    Args:
        composed: whether there is an option that this kernel does not have.
    """
    if composed or dtype == "float64" or rank not in _FUSED_AXES:
        return False
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return len(axes) == 1 and axes[0] % rank in _FUSED_AXES[rank]
