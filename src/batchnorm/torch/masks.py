"""Masks from what sequences come with: their lengths."""

from __future__ import annotations

import torch


def mask_of_lengths(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """`[N, size]`: True for the first `lengths[n]` positions of sequence n.

    It masks inputs of shape `[N, C, size]`, and is what `forward` takes as `mask`.

    Args:
        lengths: integers `[N]`; beyond size, a sequence has all positions, and below 0 none.
        size: positions of each sequence, padding included.

    Raises:
        TypeError: lengths is no tensor of integers.
        ValueError: lengths has another rank than one, or size is no integer >= 0.
    """
    integers = isinstance(lengths, torch.Tensor) and not (
        lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool
    )
    if not integers:
        kind = lengths.dtype if isinstance(lengths, torch.Tensor) else type(lengths).__name__
        raise TypeError(f"mask_of_lengths: lengths must be a tensor of integers; got {kind}.")
    if lengths.dim() != 1:
        raise ValueError(
            f"mask_of_lengths: lengths must have the shape [N]; got {tuple(lengths.shape)}."
        )
    if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)) or size < 0:
        raise ValueError(f"mask_of_lengths: size must be an int >= 0; got {size!r}.")
    return torch.arange(size, device=lengths.device) < lengths[:, None]
