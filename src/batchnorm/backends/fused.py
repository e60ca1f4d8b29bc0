"""What the kernels of all frameworks share: the steps, the form the kernels take, and second
derivatives.

Kernels have one derivative each. A derivative of that derivative (gradient penalties, Hessians)
goes through `derivative.backward`, with moments that are attached to x: exact, if slower.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from batchnorm._axes import View
from batchnorm._moments import Moments
from batchnorm.backends import derivative
from batchnorm.backends.composite import Case
from batchnorm.backends.derivative import Slopes

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
    """The big steps by the kernels of one framework; see `steps.Steps`.

    `calls` has the kernels with their derivatives: `moments`, `forward` and `standardize`, of an x
    that reads as the sizes `[A, G, B, C, D]`, and weights `[A, G or 1, B, 1, D]`. `whole` does a
    plain call in one go where it can; None where a framework has no such way. `adds`: forward and
    standardize take a residual.
    """

    def __init__(self, ops: Any, calls: Any, whole: Any = None, adds: bool = False) -> None:
        self.ops, self.calls, self.whole, self.adds = ops, calls, whole, adds

    def _laid_out(self, x: Tensor, case: Case) -> tuple[Tensor, Sizes, Tensor | None]:
        view, weights = case.view, case.weights
        if weights is not None:
            weights = view.apply_to_weights(self.ops, weights)
        return view.apply(self.ops, x), view.canonical, weights

    def _residual(self, case: Case) -> dict[str, Tensor]:
        if case.residual is None:
            return {}
        return {"residual": case.view.apply(self.ops, case.residual)}

    def moments(self, x: Tensor, case: Case) -> tuple[Moments, None]:
        return Moments(*self.calls.moments(*self._laid_out(x, case))), None

    def forward(
        self, x: Tensor, case: Case, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Moments]:
        _, g, _, c, _ = case.view.canonical
        scale, offset = (
            None if v is None else self.ops.per_channel(v, (g, c)) for v in (scale, offset)
        )
        how = (case.epsilon, ACTIVATIONS[case.activation])
        operands = (*self._laid_out(x, case), scale, offset)
        y, *measured = self.calls.forward(*operands, *how, **self._residual(case))
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
        centered: None = None,
        frozen: bool = False,
    ) -> Tensor:
        laid_out = self._laid_out(x, case)
        given = vectors(self.ops, laid_out[1], used, scale, offset, live)
        how = (case.epsilon, ACTIVATIONS[case.activation], frozen, replicas)
        y = self.calls.standardize(*laid_out, given, *how, **self._residual(case))
        return case.view.undo(self.ops, y)

    def infer(
        self, x: Tensor, case: Case, used: Moments, scale: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        return self.standardize(x, case, used, scale, offset, frozen=True)

    def remember(
        self,
        state: Any,
        measured: Moments,
        momentum: float,
        unbiased: bool,
        propagate: bool,
        filled: bool,
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


def case_of(sizes: Sizes, weights: Tensor | None, epsilon: Any, activation: int) -> Case:
    """What a kernel is told of a call, as array operations take it."""
    name = "relu" if activation == ACTIVATIONS["relu"] else None
    return Case(View.of(sizes), weights, epsilon, name)


def exact_backward(
    ops: Any,
    x: Tensor,
    dy: Tensor,
    sizes: Sizes,
    weights: Tensor | None,
    given: Vectors,
    epsilon: Any,
    activation: int,
    frozen: bool,
    replicas: Any = None,
) -> Slopes:
    """The kernel's derivative as a function of x through its moments too: for further ones."""
    _, g, _, c, _ = sizes
    mean, remainder, variance, count = (
        None if one is None else ops.reshape(one, (g, n))
        for one, n in zip(given[:4], (c, c, c, 1), strict=True)
    )
    used = Moments(mean, remainder, variance, count)
    case = case_of(sizes, weights, epsilon, activation)
    live = None if given.live is None else ~ops.equal(ops.reshape(given.live, (g, c)), 0)
    laid_out = ops.reshape(x, sizes)
    if not frozen:
        used = derivative.attached(ops, laid_out, case, used, live, replicas)
    slopes = derivative.backward(
        ops, laid_out, ops.reshape(dy, sizes), case, used, given.scale, given.offset, live, frozen,
        replicas,
    )  # fmt: skip
    return slopes._replace(x=ops.reshape(slopes.x, ops.shape(x)))
