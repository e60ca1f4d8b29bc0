"""The big steps in array operations, with their derivative: what runs where no kernel does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from batchnorm._moments import Moments
from batchnorm.backends.composite import Case, activated, affine_map, measured, standardize
from batchnorm.backends.derivative import differentiable

Tensor = Any


class Steps:
    """Moments and standardization in the operations of one framework.

    The kernels of a framework have the same methods. What is a framework's own: `affine` for
    `affine_map` where it has better operations; `derived`, which is `differentiable` with one
    derivative that keeps x and vectors; `remember`, the plain moving averages in fewer operations.
    """

    whole = None

    def __init__(
        self,
        ops: Any,
        affine: Callable[..., Tensor] | None = None,
        derived: Callable[..., Tensor] | None = None,
        remember: Callable[..., Any] | None = None,
    ) -> None:
        self.ops = ops
        self.affine = affine or functools.partial(affine_map, ops)
        self._derived = derived or functools.partial(differentiable, ops)
        self._remember = remember

    def moments(self, x: Tensor, case: Case) -> tuple[Moments, Tensor | None]:
        """Mean, biased variance and count of each channel of each group; see `measured`.

        And what `standardize` may be told once, where it takes these moments; None for nothing.
        """
        return measured(self.ops, self.ops.stop_gradient(x), case)

    def standardize(
        self,
        x: Tensor,
        case: Case,
        used: Moments,
        scale: Tensor | None,
        offset: Tensor | None,
        live: Tensor | None = None,
        replicas: Any = None,
        centered: Tensor | None = None,
    ) -> Tensor:
        """y in x's shape and type; see `standardize`."""
        return self._derived(x, case, used, scale, offset, live, replicas, centered)

    def forward(
        self, x: Tensor, case: Case, scale: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Moments]:
        """`moments`, then `standardize` with them."""
        found, centered = self.moments(x, case)
        return self.standardize(x, case, found, scale, offset, centered=centered), found

    def infer(
        self, x: Tensor, case: Case, used: Moments, scale: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        """An affine map on x's own shape: `standardize` with statistics that are constants."""
        if case.weights is not None:  # what is left out may not be finite
            return standardize(self.ops, x, case, used, scale, offset)
        y = self.affine(x, case.view, used.mean, used.variance, scale, offset, case.epsilon)
        return activated(self.ops, y, case.activation)

    def remember(
        self,
        state: Any,
        measured: Moments,
        momentum: float,
        unbiased: bool,
        propagate: bool,
        filled: bool,
    ) -> Any:
        """The plain moving averages after a step; None for a state that is laid out otherwise.

        Args:
            filled: whether every channel is known to have values.
        """
        if self._remember is None:
            return None
        return self._remember(state, measured, momentum, unbiased, propagate, filled)
