"""Which methods of the originals a subclass may override, and how those are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# what a layer of `tf.layers` had inside and ours has not -> what to write instead
_CALL = "Override call"
_MOMENTS = "Override _moments or _calculate_mean_and_var"
REFUSED: Mapping[str, str] = {
    "_USE_V2_BEHAVIOR": f"{_CALL}, and give super().call another training.",
    "_add_elements_to_collection": "Override add_update.",
    "_assign_moving_average": "Make the layer with trainable=False and give add_update the ops.",
    "_assign_new_value": "Make the layer with trainable=False and give add_update the ops.",
    "_bessels_correction_test_only": f"{_MOMENTS}, whose variance is remembered as it is.",
    "_call_fn_args": f"{_CALL}.",
    "_dtensor_calculate_mean_and_var": f"{_MOMENTS}.",
    "_dtensor_no_sync_calculate_mean_and_var": f"{_MOMENTS}.",
    "_dtensor_sync_calculate_mean_and_var": f"{_MOMENTS}.",
    "_eager_losses": "Override add_loss.",
    "_fused_batch_norm": f"{_MOMENTS}, or call.",
    "_handle_weight_regularization": "Override add_weight.",
    "_init_set_name": "Give the constructor a name.",
    "_make_unique_name": "Give the constructor a name.",
    "_maybe_build": "Override build.",
    "_name_scope": "Give the constructor a name.",
    "_no_sync_calculate_mean_and_var": f"{_MOMENTS}.",
    "_raise_if_fused_cannot_be_used": "Override _fused_can_be_used.",
    "_renorm_correction_and_moments": "Give renorm_clipping and renorm_momentum as tensors.",
    "_set_scope": "Give the constructor a name.",
    "_support_zero_size_input": "Remove it: an empty batch changes no statistics.",
    "_sync_calculate_mean_and_var": f"{_MOMENTS}.",
    "compute_mask": f"{_CALL}.",
}


def check(cls: type, refused: Mapping[str, str] = REFUSED) -> None:
    """Refuses a class that defines what nothing here would ever call.

    Raises:
        TypeError: it overrides one of `refused`.
    """
    for name in vars(cls):
        if name in refused:
            raise TypeError(
                f"{cls.__name__}: {name} must not be overridden; got an override, which nothing "
                f"here calls. {refused[name]}"
            )


def overrides(layer: Any, base: type, *names: str) -> bool:
    """Whether a layer's class, or the layer itself, has a method of its own."""
    return any(
        name in vars(layer) or getattr(type(layer), name) is not getattr(base, name)
        for name in names
    )


def measured_by(
    method: Callable[..., Any],
    owner: str,
    inputs: Any,
    reduction_axes: Sequence[int],
    keep_dims: bool,
    mask: Any,
) -> Any:
    """What an override of a method of the moments returns, whatever signature it has.

    TensorFlow 1.x had `(inputs, reduction_axes, keep_dims)`, later ones `mask` besides.

    Raises:
        ValueError: there is a mask, and the override has no argument for it.
    """
    taken = inspect.signature(method).parameters
    rest = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    given = {"mask": mask} if "mask" in taken or (rest and mask is not None) else {}
    if mask is not None and not given:
        name = getattr(method, "__name__", "the method")
        raise ValueError(
            f"{owner}: mask must be None where {name} has no argument mask; got one. Give the "
            "override that argument."
        )
    if "keep_dims" in taken or rest:
        return method(inputs, reduction_axes, keep_dims=keep_dims, **given)
    return method(inputs, reduction_axes, keep_dims, **given)
