"""The middle step: what renorm and `adjustment` do to the scale and the offset.

Everything here is a vector of length C per group, or as small as the user made it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from batchnorm._axes import View, product, shape_of
from batchnorm._moments import Moments
from batchnorm._options import CLIPPING_KEYS, Options
from batchnorm._plan import Plan
from batchnorm._rows import Rows, aside
from batchnorm.backends.composite import affine

Tensor = Any
Affine = tuple[Tensor | None, Tensor | None]  # scale and offset; None for 1 and 0


class Correction(NamedTuple):
    """What standardizing applies: vectors `[G or R, C]`, an activation, and what comes behind it.

    `after` is a function of y for an adjustment that varies along reduced dimensions, where no
    vector can hold it; gamma, beta and the activation are in it then.
    """

    scale: Tensor | None
    offset: Tensor | None
    activation: str | None
    after: Callable[[Tensor], Tensor] | None


def correct(
    ops: Any,
    plan: Plan,
    view: View,
    x: Tensor,
    old: Rows,
    parameters: Affine,
    measured: Moments | None = None,
    live: Tensor | None = None,
) -> Correction:
    """Renorm, then `adjustment`, then gamma and beta.

    Args:
        parameters: gamma and beta as rows.
        measured: the moments that normalize, as constants; None where nothing here needs them.
        live: which groups have values; the others are not corrected, and train nothing.
    """
    options = plan.options
    inner: Affine = (None, None)
    if options.renorm:
        inner = _renorm(ops, options, old, measured, live)
    outer = (_training(ops, parameters[0], live), _training(ops, parameters[1], live))
    if options.adjustment is None:
        return Correction(*compose(inner, outer), options.activation, None)
    pair, varies = _adjustment(ops, plan, view, x, live)
    if not varies:
        return Correction(*compose(compose(inner, pair), outer), options.activation, None)

    def after(y: Tensor) -> Tensor:
        shown = None if live is None else view.spread_groups(ops, live)
        spread = [None if one is None else view.spread(ops, one) for one in parameters]
        trained = (_training(ops, spread[0], shown), _training(ops, spread[1], shown))
        return affine(ops, y, *compose(pair, trained), options.activation)

    return Correction(*inner, None, after)


def _training(ops: Any, parameter: Tensor | None, live: Tensor | None) -> Tensor | None:
    """gamma or beta, constant for the groups without values: these must not train anything."""
    if parameter is None or live is None:
        return parameter
    return ops.where(live, parameter, ops.stop_gradient(parameter))


def compose(inner: Affine, outer: Affine) -> Affine:
    """The affine map `u -> outer(inner(u))`."""
    (scale, offset), (outer_scale, outer_offset) = inner, outer
    if outer_scale is not None:
        scale = outer_scale if scale is None else scale * outer_scale
        offset = None if offset is None else offset * outer_scale
    if outer_offset is not None:
        offset = outer_offset if offset is None else offset + outer_offset
    return scale, offset


def _renorm(
    ops: Any, options: Options, old: Rows, measured: Moments | None, live: Tensor | None
) -> Affine:
    """`renorm_correction`, aside where its bounds are numbers and every group has values."""
    assert measured is not None
    bounds = (options.renorm_clipping or {}).values()
    if live is not None or not all(one is None or isinstance(one, numbers.Real) for one in bounds):
        return renorm_correction(ops, options, old, measured, live)

    def both(ops: Any, old: Rows, measured: Moments) -> dict[str, Tensor]:
        r, d = renorm_correction(ops, options, old, measured, None)
        return {"r": r, "d": d}

    found = aside(ops, old, measured, both)
    return found["r"], found["d"]


def renorm_correction(
    ops: Any, options: Options, state: Rows, moments: Any, live: Tensor | None
) -> Affine:
    """r and d, constant in x.

    Formula, with s = max(renorm_stddev, sqrt(epsilon)):
        r = clip(sqrt(variance + epsilon) / s, rmin, rmax)
        d = clip((mean - renorm_mean) / s, -dmax, dmax)
    With renorm_momentum=None, renorm_mean is moving_mean and renorm_stddev is
    sqrt(moving_variance + epsilon).

    Edge cases: s = 0, which takes epsilon = 0, gives r = 1 and d = 0.

    Reference: Ioffe 2017, algorithm 1.
    """
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
        reference = ops.fill(reference, unknown, 1)
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
        r, d = ops.fill(r, unknown, 1), ops.fill(d, unknown, 0)
    if live is not None:
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
            if _is_nothing(value):
                raise TypeError(
                    f"{options.owner}: renorm_clipping's {name} must return a number or a tensor "
                    f"for a step; got {value!r}."
                )
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


def _is_nothing(returned: Any) -> bool:
    """Whether a user's function returned what no framework makes a tensor of."""
    return returned is None or isinstance(returned, str)


def _adjustment(
    ops: Any, plan: Plan, view: View, x: Tensor, live: Tensor | None
) -> tuple[Affine, bool]:
    """What the user's `adjustment` returns for x, and 1 and 0 where the batch does not normalize.

    As rows, `[G or R, C]`, unless it varies along reduced dimensions, then as given. Over several
    replicas it is taken to vary: the vectors must be the same on all of them.

    Raises:
        ValueError: it returned anything but two values that broadcast to x.
    """
    options, dtype = plan.options, plan.dtype
    assert options.adjustment is not None
    returned = options.adjustment(ops.runtime_shape(x))
    paired = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not paired or any(map(_is_nothing, returned)):
        raise ValueError(
            f"{options.owner}: adjustment must return (scale, bias); got {returned!r}."
        )
    pair = [ops.cast(ops.asarray(one, x), dtype) for one in returned]
    shapes = [_shape_against(ops, options, view, one) for one in pair]
    varies = plan.several or any(
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
    if live is not None:
        scale, bias = pair
        chosen = view.spread_groups(ops, live) if varies else live
        pair = [
            ops.where(chosen, scale, ops.ones_like(scale)),
            ops.where(chosen, bias, ops.zeros_like(bias)),
        ]
    return (pair[0], pair[1]), varies


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
