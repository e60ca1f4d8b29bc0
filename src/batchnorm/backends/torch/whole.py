"""A plain call in one go, for small tensors: there each look at a tensor costs as much as a kernel.

It computes what the steps compute, by the same kernels, and takes nothing but plain tensors in
plain memory, or in channels-last order, that nobody watches; all others take the steps.
`whole_cpu` and `whole_gpu` have the calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.graph import increment_version

from batchnorm.backends.fused import ACTIVATIONS
from batchnorm.backends.torch import derivatives
from batchnorm.backends.torch.watchers import PLAIN, observed

State = dict[str, torch.Tensor]
Lies = tuple[torch.memory_format, Any]
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_OF_STATE = {"moving_mean", "moving_variance", "skipped_updates", "num_updates"}


class InPlace(State):
    """A state whose tensors may become the new state's: a module's buffers."""


class Ready(ABC):
    """What the calls of a plan have in common, and the kernels.

    `at` is where mean, remainder, variance and count are, as the kernels take it; `kept` are the
    tensors of them that a derivative needs.
    """

    counters: tuple[torch.dtype, ...]  # types that the kernels count in

    def __init__(self, plan: Any) -> None:
        options, view = plan.options, plan.view
        self.sizes = view.canonical
        a, g, b, c, d = view.canonical
        self.read = [(torch.contiguous_format, self.order(a, g, b, c, d))]
        native = CHANNELS_LAST.get(len(view.shape))
        if view.axes == (1,) and native is not None:
            self.read.append((native, self.order(a, g, b * d, c, 1)))
        self.rows = view.row_shape
        self.length = self.rows[0] * self.rows[1]
        self.statistics = getattr(torch, plan.dtype)
        self.epsilon, self.activation = options.epsilon, ACTIVATIONS[options.activation]
        self.how = (
            options.momentum,
            options.unbiased_moving_variance,
            options.on_nonfinite == "propagate",
        )

    def lies(self, x: torch.Tensor) -> Lies | None:
        """The order of x's memory, and the sizes that it reads as; None for any other order."""
        for lies in self.read:
            if x.is_contiguous(memory_format=lies[0]):
                return lies
        return None

    def holds(self, vector: Any, x: torch.Tensor) -> bool:
        """Whether a vector lies as the kernels read it."""
        return (
            type(vector) in PLAIN
            and vector.dtype is self.statistics
            and vector.numel() == self.length
            and vector.is_contiguous()
            and self.beside(vector, x)
            and not vector.is_neg()
        )

    def counts(self, counter: torch.Tensor, x: torch.Tensor, length: int) -> bool:
        """Whether a counter lies as the kernels read it."""
        return (
            counter.dtype in self.counters
            and counter.numel() == length
            and counter.is_contiguous()
            and self.beside(counter, x)
        )

    @staticmethod
    @abstractmethod
    def beside(vector: torch.Tensor, x: torch.Tensor) -> bool:
        """Whether a vector is where x is."""

    @staticmethod
    @abstractmethod
    def order(*sizes: int) -> Any:
        """Sizes as the kernels take them."""

    @abstractmethod
    def infer(self, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        """y by these statistics."""

    @abstractmethod
    def forward(self, lies: Lies, x: Any, gamma: Any, beta: Any) -> tuple[torch.Tensor, ...]:
        """y, and what is kept of the moments."""

    @abstractmethod
    def backward(
        self, lies: Lies, x: Any, dy: Any, gamma: Any, beta: Any, at: Any, frozen: bool
    ) -> Any:
        """The gradients of x, gamma and beta."""

    @abstractmethod
    def remember(
        self, kept: Any, state: Mapping[str, Any], new: Mapping[str, Any], number: Any
    ) -> None:
        """Writes the new averages and counters, the `number` of updates only where it is given."""

    @abstractmethod
    def at(self, kept: Any) -> Any:
        """Where moments are."""

    @abstractmethod
    def at_moving(self, mean: Any, variance: Any) -> Any:
        """Where statistics are that no batch measured."""

    @abstractmethod
    def vectors(self, kept: Any) -> list[torch.Tensor]:
        """The moments as the operators take them."""


def whole(
    kind: type[Ready],
    plan: Any,
    x: torch.Tensor,
    parameters: Mapping[str, Any],
    state: Mapping[str, Any],
) -> tuple[torch.Tensor, State] | None:
    """What the steps return; None where they must be taken."""
    if type(x) not in PLAIN or x.is_neg() or observed():
        return None
    ready = plan.ready.get(kind)
    if ready is None:
        ready = plan.ready[kind] = kind(plan)
    lies = ready.lies(x)
    if lies is None:
        return None
    gamma, beta = parameters.get("gamma"), parameters.get("beta")
    mean, variance = state.get("moving_mean"), state.get("moving_variance")
    for vector in (gamma, beta, mean, variance):
        if vector is not None and not ready.holds(vector, x):
            return None
    if (
        (plan.needed and (mean is None or variance is None))
        or len(parameters) != (gamma is not None) + (beta is not None)
        or not state.keys() <= _OF_STATE  # others have a shape that must be right
    ):
        return None
    learns = torch.is_grad_enabled() and _learns(x, gamma, beta)
    if not plan.batch:
        operands = (lies, x, gamma, beta, mean, variance)
        y = _infer_learning(ready, *operands) if learns else ready.infer(*operands)
        return y, dict(state)
    skipped, number = state.get("skipped_updates"), state.get("num_updates")
    if not all(one is None or type(one) in PLAIN for one in (skipped, number)):
        return None
    if skipped is not None and not (
        skipped.dtype is torch.int32 and ready.counts(skipped, x, ready.length)
    ):
        return None
    counted = number if number is not None and ready.counts(number, x, 1) else None
    y, *kept = (
        _forward_learning(ready, lies, x, gamma, beta)
        if learns
        else ready.forward(lies, x, gamma, beta)
    )
    if not plan.update:
        return y, dict(state)
    assert mean is not None
    assert variance is not None
    # what torch would refuse to overwrite goes its way, and is refused there
    writable = not (mean.is_inference() or _learns(mean, variance))
    own = state if type(state) is InPlace and writable else None
    new = {name: torch.empty_like(one) for name, one in state.items()} if own is None else own
    if own is not None:  # what autograd kept of them must notice
        increment_version(list(own.values()))
    ready.remember(kept, state, new, counted)
    if number is not None and counted is None:  # torch's modules count in int64
        new["num_updates"] = number + 1 if own is None else number.add_(1)
    return y, new


def _learns(*tensors: torch.Tensor | None) -> bool:
    for one in tensors:  # noqa: SIM110 - a generator in `any` would cost twice as much
        if one is not None and one.requires_grad:
            return True
    return False


class _Forward(torch.autograd.Function):
    """y and what is kept; the derivative is that of the operator `forward`."""

    @staticmethod
    def forward(ctx: Any, ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any) -> Any:
        y, *kept = ready.forward(lies, x, gamma, beta)
        ctx.ready, ctx.lies = ready, lies
        ctx.save_for_backward(x, gamma, beta, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        return y, *kept

    @staticmethod
    def backward(ctx: Any, dy: Any, *_: Any) -> Any:
        if dy is None:
            return None, None, None, None, None
        x, gamma, beta, *kept = ctx.saved_tensors
        ready = ctx.ready
        if _must_see(ctx, x, dy):
            found = _by_operator(ready, x, dy, gamma, beta, ready.vectors(kept), False)
        else:
            found = ready.backward(ctx.lies, x, dy, gamma, beta, ready.at(kept), False)
        return None, None, *found


class _Infer(torch.autograd.Function):
    """y by statistics that are constants."""

    @staticmethod
    def forward(
        ctx: Any, ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
    ) -> Any:
        ctx.ready, ctx.lies = ready, lies
        # as they are now: a step may update them in place before the gradient is asked for
        ctx.save_for_backward(x, gamma, beta, mean.clone(), variance.clone())
        return ready.infer(lies, x, gamma, beta, mean, variance)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, gamma, beta, mean, variance = ctx.saved_tensors
        ready = ctx.ready
        if _must_see(ctx, x, dy):
            rows = (mean.reshape(ready.rows), None, variance.reshape(ready.rows), None)
            found = _by_operator(ready, x, dy, gamma, beta, rows, True)
        else:
            at = ready.at_moving(mean, variance)
            found = ready.backward(ctx.lies, x, dy, gamma, beta, at, True)
        return None, None, *found, None, None


# Past `Function.apply`, which looks for transformations: `whole` did, and its way costs 3 us.
_forward_learning = super(torch.autograd.Function, _Forward).apply
_infer_learning = super(torch.autograd.Function, _Infer).apply


def _must_see(ctx: Any, x: torch.Tensor, dy: torch.Tensor) -> bool:
    """Whether a gradient goes through an operator, which has derivatives and is seen by others."""
    return (
        torch.is_grad_enabled()  # a derivative of this one is wanted
        or type(dy) not in PLAIN
        or dy.dtype is not x.dtype
        or not dy.is_contiguous(memory_format=ctx.lies[0])
        or dy.is_neg()
        or observed()
        or torch._C._functorch.is_legacy_batchedtensor(dy)
    )


def _by_operator(
    ready: Ready, x: Any, dy: Any, gamma: Any, beta: Any, vectors: Any, frozen: bool
) -> Any:
    """The same by an operator that has derivatives of its own."""
    rows = (None if one is None else one.reshape(ready.rows) for one in (gamma, beta))
    how = (ready.epsilon, ready.activation, frozen)
    operands = (x, ready.sizes, dy, None, *vectors, *rows, None, *how)
    if torch._C._functorch.is_legacy_batchedtensor(dy):
        dx, sum_dy, sum_dy_xh = torch.ops.batchnorm.backward(*operands)
    else:
        dx, sum_dy, sum_dy_xh = derivatives.run("backward", *operands)
    d_gamma = None if gamma is None else sum_dy_xh.reshape(gamma.shape)
    return dx, d_gamma, None if beta is None else sum_dy.reshape(beta.shape)
