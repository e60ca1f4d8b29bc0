"""What the next call of a layer will do, in words: `explain`."""

from __future__ import annotations

from typing import Any

from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import find


def explain(layer: Any) -> str:
    """Sentences: what normalizes in training and in inference, what is remembered and trained.

    Args:
        layer: a batch-normalization layer, or a whole model: then a line for each of its layers.

    Raises:
        TypeError, ValueError: it is neither.
    """
    norms = find(layer, "explain")
    if len(norms) == 1 and norms[0].layer is layer:
        return sentences(norms[0])
    return "\n".join(f"{norm.name}: {sentences(norm)}" for norm in norms)


def sentences(norm: Norm) -> str:
    """What the next call of this layer will do."""
    words = norm.sentences()
    path, reason = norm.path()
    words.append(f"It runs on {path}.")
    if reason:
        words.append(f"Not on our fused kernels: {reason}")
    if (plan := norm.last_plan()) is not None:
        words.append(f"Its last call followed {plan!r}.")
    return " ".join([*words, *_counted(norm)])


def _counted(norm: Norm) -> list[str]:
    count = norm.updates()
    if count is None:
        return []
    if count == 0 and not norm.untouched():
        return ["No update of its statistics was counted: they were put there."]
    return [f"It has counted {count} update{'' if count == 1 else 's'} of its statistics."]
