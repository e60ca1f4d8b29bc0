"""Ghost batches of consecutive samples, of which the last may have fewer.

That one is filled up with rows that count nothing: all groups have one size then, as everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from batchnorm._options import Options
from batchnorm._plan import chunks, decide

Tensor = Any


class Filled(NamedTuple):
    """What a call was given, with rows of weight 0 behind the batch of `samples`."""

    options: Options
    x: Tensor
    mask: Tensor | None
    batch_weights: Tensor | None
    samples: Any


def filled_up(
    ops: Any, options: Options, x: Tensor, training: bool, mask: Any, batch_weights: Any
) -> Filled | None:
    """The call with a last chunk as large as the others; None where it is."""
    if options.virtual_batch_size is None or options.ghost_order == "strided":
        return None
    if not any(decide(options.statistics, options.update_statistics, training)):
        return None
    shape = ops.shape(x)
    if not shape:
        return None  # another error tells more
    samples = shape[0]
    size, groups = chunks(ops, samples, options.virtual_batch_size)
    missing = size * groups - samples
    if not ops.is_tensor(missing) and missing == 0:
        return None

    def longer(value: Tensor) -> Tensor:
        sizes = ops.shape(value)[1:]
        zeros = ops.full((missing, *sizes), 0, ops.dtype(value), value)
        return ops.concatenate((value, zeros), 0)

    given: dict[str, Any] = {"mask": mask, "batch_weights": batch_weights}
    counted = False
    for name, value in given.items():
        if value is not None:
            given[name] = value = ops.asarray(value, x)
            if _by_sample(ops, value):
                given[name], counted = longer(value), True
    if not counted:  # then nothing says yet that the new rows do not count
        own = longer(ops.full((samples,), 1, "float32", x))
        weights = given["batch_weights"]
        if weights is not None:
            weights = ops.cast(weights, "float32")
            rank = len(ops.shape(weights))
            own = weights * ops.reshape(own, (-1, *[1] * (rank - 1))) if rank else weights * own
        given["batch_weights"] = own
    if options.adjustment is not None:
        by_own = _by_shape_of(ops, options.adjustment, x, longer)
        options = dataclasses.replace(options, adjustment=by_own)
    return Filled(options, longer(x), given["mask"], given["batch_weights"], samples)


def _by_sample(ops: Any, value: Tensor) -> bool:
    """Whether a value's first dimension is the batch."""
    shape = ops.shape(value)
    return len(shape) > 0 and (ops.is_tensor(shape[0]) or shape[0] != 1)


def _by_shape_of(ops: Any, adjustment: Any, x: Tensor, longer: Any) -> Any:
    """The user's `adjustment` of x's own shape, for the longer x."""

    def adjusted(_: Any) -> Any:
        returned = adjustment(ops.runtime_shape(x))
        if not isinstance(returned, (tuple, list)):
            return returned  # refused where it is used
        pair = [ops.asarray(one, x) for one in returned]
        rank = len(ops.shape(x))
        return [
            longer(one) if len(ops.shape(one)) == rank and _by_sample(ops, one) else one
            for one in pair
        ]

    return adjusted
