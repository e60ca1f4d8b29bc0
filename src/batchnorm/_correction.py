"""The middle step: what renorm and `adjustment` do to the scale and the offset.

Everything here is a vector of length C per group, or as small as the user made it.
"""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

from batchnorm._axes import View, product, shape_of
from batchnorm._moments import Moments
from batchnorm._options import CLIPPING_KEYS, Options
from batchnorm._rows import Rows

Tensor = Any
Affine = tuple[Tensor | None, Tensor | None]  # scale and offset; None for 1 and 0


class Adjustment(NamedTuple):
    """The pair that `adjustment` returned; `[G or R, C]` unless it varies, then as given."""

    pair: Affine
    varies: bool


NO_ADJUSTMENT = Adjustment((None, None), False)


def compose(inner: Affine, outer: Affine) -> Affine:
    """The affine map `u -> outer(inner(u))`."""
    (scale, offset), (outer_scale, outer_offset) = inner, outer
    if outer_scale is not None:
        scale = outer_scale if scale is None else scale * outer_scale
        offset = None if offset is None else offset * outer_scale
    if outer_offset is not None:
        offset = outer_offset if offset is None else offset + outer_offset
    return scale, offset


def renorm_correction(
    ops: Any, options: Options, state: Rows, moments: Moments, live: bool | Tensor
) -> Affine:
    """r and d, constant in x; (None, None) without renorm.

    Formula, with s = max(renorm_stddev, sqrt(epsilon)):
        r = clip(sqrt(variance + epsilon) / s, rmin, rmax)
        d = clip((mean - renorm_mean) / s, -dmax, dmax)
    With renorm_momentum=None, renorm_mean is moving_mean and renorm_stddev is
    sqrt(moving_variance + epsilon).

    Edge cases: s = 0, which takes epsilon = 0, gives r = 1 and d = 0.

    Reference: Ioffe 2017, algorithm 1.
    """
    if not options.renorm:
        return None, None
    epsilon = options.epsilon
    if options.renorm_remembers:
        center, reference = state["renorm_mean"], state["renorm_stddev"]
    else:
        center = state["moving_mean"]
        reference = ops.sqrt(ops.maximum(state["moving_variance"], 0.0) + epsilon)
    reference = ops.maximum(reference, epsilon**0.5)
    unknown = None
    if epsilon == 0:  # after constant batches alone
        unknown = ops.equal(reference, 0)
        reference = ops.where(unknown, ops.ones_like(reference), reference)
    r = ops.sqrt(moments.variance + epsilon) / reference
    d = ((moments.mean - center) + moments.remainder) / reference
    bounds = _clipping(ops, options, state)
    if "rmin" in bounds:
        r = ops.maximum(r, bounds["rmin"])
    if "rmax" in bounds:
        r = ops.minimum(r, bounds["rmax"])
    if "dmax" in bounds:
        d = ops.minimum(ops.maximum(d, -bounds["dmax"]), bounds["dmax"])
    if unknown is not None:
        r, d = ops.where(unknown, ops.ones_like(r), r), ops.where(unknown, ops.zeros_like(d), d)
    if live is not True:
        r, d = ops.where(live, r, ops.ones_like(r)), ops.where(live, d, ops.zeros_like(d))
    return ops.stop_gradient(r), ops.stop_gradient(d)


def _clipping(ops: Any, options: Options, state: Rows) -> dict[str, Any]:
    """The bounds of this step: numbers, or tensors that broadcast to `[G, C]`."""
    bounds = {}
    like = state["moving_mean"]
    for name in CLIPPING_KEYS:
        value = (options.renorm_clipping or {}).get(name)
        if value is None:
            continue
        if callable(value) and not ops.is_tensor(value):
            if "num_updates" not in state:
                raise ValueError(
                    f"{options.owner}: state must hold num_updates for a renorm_clipping that is "
                    "a function of the step; got none. Start from batchnorm.init."
                )
            value = value(ops.cast(state["num_updates"], ops.dtype(like)))
        if isinstance(value, numbers.Real):
            value = float(value)  # NumPy's own would widen a float32 tensor
        else:
            value = ops.cast(ops.asarray(value, like), ops.dtype(like))
            if given := shape_of(ops, value, options.owner, f"renorm_clipping's {name}"):
                if product(given) != product(ops.shape(like)):
                    raise ValueError(
                        f"{options.owner}: renorm_clipping must hold scalars or one value per "
                        f"channel, {product(ops.shape(like))} of them; got {name} of shape "
                        f"{tuple(given)}."
                    )
                value = ops.reshape(value, ops.shape(like))
        bounds[name] = value
    return bounds


def adjustment(
    ops: Any,
    options: Options,
    view: View,
    x: Tensor,
    dtype: str,
    live: bool | Tensor,
    batch: bool | Tensor,
    *,
    apart: bool = False,
) -> Adjustment:
    """What the user's `adjustment` returns for x, and 1 and 0 where the batch does not normalize.

    With `apart` it is never folded into the vectors, which must be the same on all replicas.

    Raises:
        ValueError: it returned anything but two values that broadcast to x.
    """
    if options.adjustment is None or batch is False:
        return NO_ADJUSTMENT
    returned = options.adjustment(ops.runtime_shape(x))
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ValueError(
            f"{options.owner}: adjustment must return (scale, bias); got {returned!r}."
        )
    pair = [ops.cast(ops.asarray(one, x), dtype) for one in returned]
    shapes = [_shape_against(ops, options, view, one) for one in pair]
    varies = apart or any(
        ops.is_tensor(size) or size != 1
        for shape in shapes
        for i, size in enumerate(shape)
        if i not in view.axes
    )
    if not varies:
        full = [size if i in view.axes else 1 for i, size in enumerate(view.shape)]
        pair = [
            ops.reshape(ops.broadcast_to(ops.reshape(one, shape), full), view.row_shape)
            for one, shape in zip(pair, shapes, strict=True)
        ]
    if live is not True:
        scale, bias = pair
        chosen = view.spread_groups(ops, live) if varies else live
        pair = [
            ops.where(chosen, scale, ops.ones_like(scale)),
            ops.where(chosen, bias, ops.zeros_like(bias)),
        ]
    return Adjustment((pair[0], pair[1]), varies)


def _shape_against(ops: Any, options: Options, view: View, value: Tensor) -> list[Any]:
    """The value's shape, with ones in front up to rank(x)."""
    given = shape_of(ops, value, options.owner, "what adjustment returns")
    shape = [1] * (len(view.shape) - len(given)) + list(given)
    if len(shape) != len(view.shape) or any(
        not ops.is_tensor(size) and not ops.is_tensor(of) and size not in (1, of)
        for size, of in zip(shape, view.shape, strict=True)
    ):
        raise ValueError(
            f"{options.owner}: adjustment must return values that broadcast to the input's shape "
            f"{tuple(view.shape)}; got one of shape {tuple(given)}."
        )
    return shape
