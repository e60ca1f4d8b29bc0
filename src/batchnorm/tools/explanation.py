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
    words = {"keras": _keras, "batchnorm": _own, "torch": _torch}[norm.kind](norm.layer)
    path, reason = norm.path()
    words.append(f"It runs on {path}.")
    if reason:
        words.append(f"Not on our fused kernels: {reason}")
    if (count := norm.updates()) is not None:
        words.append(f"Its statistics have seen {count} updates.")
    return " ".join(words)


_BATCH = "normalizes with the batch's own statistics"
_MOVING = "normalizes with the moving statistics"


def _keras(layer: Any) -> list[str]:
    if not layer.trainable:
        return [
            f"With training=True and False alike it {_MOVING} and leaves them alone, because "
            "trainable=False.",
            "Gamma and beta are not trained.",
        ]
    return [
        f"With training=True it {_BATCH} and updates the moving ones "
        f"(keeping {layer.momentum:g} of the old); with training=False it {_MOVING} and leaves "
        "them alone.",
        _trained(layer.scale, layer.center, True),
    ]


def _own(layer: Any) -> list[str]:
    return [
        *_own_statistics(layer),
        _trained(layer.scale, layer.center, layer.trainable and layer.train_parameters),
    ]


def _own_statistics(layer: Any) -> list[str]:
    """Sentences about what normalizes and what is remembered, by training."""
    cases = []
    for training in (True, False):
        live = training and layer.trainable
        batch = {"auto": live, "batch": True, "moving": False}[layer.statistics]
        update = live if layer.update_statistics == "auto" else layer.update_statistics
        what = _BATCH if batch else _MOVING
        if batch and layer.virtual_batch_size is not None:
            what = (
                f"normalizes ghost batches of {layer.virtual_batch_size} with their own statistics"
            )
        if batch and layer.renorm:
            what += ", corrected by renorm"
        object_ = "the moving ones" if batch else "them"
        cases.append(
            f"{what} and {'updates' if update else 'leaves'} {object_}"
            + ("" if update else " alone")
        )
    causes = [
        f"{name}={value!r}"
        for name, value, usual in (
            ("trainable", layer.trainable, True),
            ("statistics", layer.statistics, "auto"),
            ("update_statistics", layer.update_statistics, "auto"),
        )
        if value != usual or type(value) is not type(usual)
    ]
    because = f", because {', '.join(causes)}" if causes else ""
    if cases[0] == cases[1]:
        return [f"With training=True and False alike it {cases[0]}{because}."]
    return [f"With training=True it {cases[0]}; with training=False it {cases[1]}{because}."]


def _torch(module: Any) -> list[str]:
    if getattr(module, "statistics_frozen", False):
        words = [f"In train and eval mode alike it {_MOVING} and leaves them alone: it is frozen."]
    elif not module.training:
        words = [
            f"It is in eval mode: it {_MOVING} and leaves them alone, until train() is called on "
            "it or on a module that holds it."
        ]
    else:
        words = [f"It is in train mode: it {_BATCH} and updates the moving ones."]
    scale, center = module.weight is not None, module.bias is not None
    trains = any(one.requires_grad for one in (module.weight, module.bias) if one is not None)
    return [*words, _trained(scale, center, trains)]


def _trained(scale: bool, center: bool, trains: bool) -> str:
    names = " and ".join(name for name, has in (("gamma", scale), ("beta", center)) if has)
    if not names:
        return "It has neither gamma nor beta."
    verb = "are" if scale and center else "is"
    return f"{names.capitalize()} {verb} {'trained' if trains else 'not trained'}."
