"""What the fused paths of all frameworks share: the form the kernels take, and second derivatives.

Kernels have one derivative each. A derivative of that derivative (gradient penalties, Hessians)
goes through `composite`, recomputed from x: exact, if slower.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from batchnorm._moments import Moments, attached
from batchnorm.backends import composite
from batchnorm.backends.composite import Sizes

Tensor = Any

ACTIVATIONS = {None: 0, "relu": 1}


class Vectors(NamedTuple):
    """Per-channel vectors as the kernels take them; None is absent.

    Shapes: `[G, C]`, `count` `[G, 1]`; where a backend's `row` leaves it so, `(C,)` for one group.
    """

    mean: Tensor
    remainder: Tensor | None
    variance: Tensor
    count: Tensor
    scale: Tensor | None
    offset: Tensor | None
    live: Tensor | None


def vectors(
    ops: Any,
    sizes: Sizes,
    moments: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    live: bool | Tensor,
) -> Vectors:
    """Everything that standardizing needs besides x, in full size."""
    _, g, _, c, _ = sizes

    def full(vector: Tensor | None, columns: Any = c) -> Tensor | None:
        return None if vector is None else ops.per_channel(vector, (g, columns))

    chosen = None
    if live is not True and live is not False:
        chosen = full(ops.cast(live, ops.dtype(moments.mean)))
    return Vectors(
        full(moments.mean),
        full(moments.remainder),
        full(moments.variance),
        None if live is False else full(moments.count, 1),
        full(scale),
        full(offset),
        chosen,
    )


def recomputed(
    ops: Any,
    x: Tensor,
    sizes: Sizes,
    weights: Tensor | None,
    given: Vectors,
    epsilon: float,
    activation: int,
    frozen: bool,
    replicas: Any = None,
) -> Tensor:
    """y by the composite path, a function of x through its moments too: for second derivatives."""
    used = Moments(given.mean, given.remainder, given.variance, given.count)
    if not frozen:
        measured = composite.moments(ops, x, sizes, weights)
        if replicas is not None:  # the groups that are not live take their moments from `given`
            measured = attached(ops, used, measured, replicas)
        if given.live is None:
            used = measured
        else:
            chosen = ~ops.equal(given.live, 0)
            remainder = ops.zeros_like(given.mean) if given.remainder is None else given.remainder
            used = Moments(
                ops.where(chosen, measured.mean, given.mean),
                ops.where(chosen, measured.remainder, remainder),
                ops.where(chosen, measured.variance, given.variance),
                measured.count,
            )
    name = "relu" if activation == ACTIVATIONS["relu"] else None
    return composite.standardize(
        ops, x, sizes, used, given.scale, given.offset, epsilon, weights, name
    )
