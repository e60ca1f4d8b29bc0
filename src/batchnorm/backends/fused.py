"""What the kernels of all frameworks share: the steps, the form the kernels take, and second
derivatives.

Kernels have one derivative each. A derivative of that derivative (gradient penalties, Hessians)
goes through `composite`, recomputed from x: exact, if slower.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from batchnorm._axes import View
from batchnorm._moments import Moments, attached
from batchnorm.backends import composite
from batchnorm.backends.composite import Case

Tensor = Any
Sizes = tuple[Any, Any, Any, Any, Any]

ACTIVATIONS = {None: 0, "relu": 1}


class Vectors(NamedTuple):
    """Per-channel vectors as the kernels take them; None is absent.

    Shapes: `[G, C]`, `count` `[G, 1]`; where a backend's `row` leaves it so, `(C,)` for one group.
    """

    mean: Tensor
    remainder: Tensor | None
    variance: Tensor
    count: Any  # None where statistics are frozen
    scale: Tensor | None
    offset: Tensor | None
    live: Tensor | None


class Steps:
    """The big steps by the kernels of one framework; see `composite.Steps`.

    `calls` has the kernels with their derivatives: `moments`, `forward` and `standardize`, of an x
    that reads as the sizes `[A, G, B, C, D]`, and weights `[A, G or 1, B, 1, D]`. `whole` does a
    plain call in one go where it can; None where a framework has no such way.
    """

    def __init__(self, ops: Any, calls: Any, whole: Any = None) -> None:
        self.ops, self.calls, self.whole = ops, calls, whole

    def _laid_out(self, x: Tensor, case: Case) -> tuple[Tensor, Sizes, Tensor | None]:
        view, weights = case.view, case.weights
        if weights is not None:
            weights = view.apply_to_weights(self.ops, weights)
        return view.apply(self.ops, x), view.canonical, weights

    def wide(self, x: Tensor) -> Tensor:
        return x

    def moments(self, x: Tensor, case: Case) -> Moments:
        return Moments(*self.calls.moments(*self._laid_out(x, case)))

    def over(self, measured: Moments, merged: Moments, replicas: Any) -> Moments:
        return merged

    def forward(
        self, x: Tensor, case: Case, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Moments]:
        _, g, _, c, _ = case.view.canonical
        scale, offset = (
            None if v is None else self.ops.per_channel(v, (g, c)) for v in (scale, offset)
        )
        how = (case.epsilon, ACTIVATIONS[case.activation])
        y, *measured = self.calls.forward(*self._laid_out(x, case), scale, offset, *how)
        return case.view.undo(self.ops, y), Moments(*measured)

    def standardize(
        self,
        x: Tensor,
        case: Case,
        used: Moments,
        scale: Tensor | None,
        offset: Tensor | None,
        live: Tensor | None = None,
        replicas: Any = None,
        frozen: bool = False,
    ) -> Tensor:
        laid_out = self._laid_out(x, case)
        given = vectors(self.ops, laid_out[1], used, scale, offset, live)
        how = (case.epsilon, ACTIVATIONS[case.activation], frozen, replicas)
        return case.view.undo(self.ops, self.calls.standardize(*laid_out, given, *how))

    def infer(
        self, x: Tensor, case: Case, used: Moments, scale: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        return self.standardize(x, case, used, scale, offset, frozen=True)

    def remember(
        self, state: Any, measured: Moments, momentum: float, unbiased: bool, propagate: bool
    ) -> Any:
        return self.calls.remember(state, measured, momentum, unbiased, propagate)


def vectors(
    ops: Any,
    sizes: Sizes,
    moments: Moments,
    scale: Tensor | None,
    offset: Tensor | None,
    live: Tensor | None,
) -> Vectors:
    """Everything that standardizing needs besides x, in full size."""
    _, g, _, c, _ = sizes

    def full(vector: Tensor | None, columns: Any = c) -> Tensor | None:
        return None if vector is None else ops.per_channel(vector, (g, columns))

    mean, remainder, variance, count = moments
    chosen = None if live is None else ops.cast(live, ops.dtype(mean))
    return Vectors(
        full(mean),
        full(remainder),
        full(variance),
        full(count, 1),
        full(scale),
        full(offset),
        full(chosen),
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
    name = "relu" if activation == ACTIVATIONS["relu"] else None
    case = Case(View.of(sizes), weights, epsilon, name)
    laid_out = ops.reshape(x, sizes)
    if not frozen:
        measured = composite.moments(ops, laid_out, case)
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
    y = composite.standardize(ops, laid_out, case, used, given.scale, given.offset)
    return ops.reshape(y, ops.shape(x))
