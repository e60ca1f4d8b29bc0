"""A plain call in one go, for small tensors: there each look at a tensor costs as much as a kernel.

It computes what the steps compute, by the same kernels, and takes nothing but plain tensors in
plain memory, or in channels-last order, that nobody watches; all others take the steps.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.graph import increment_version

from batchnorm._native.library import check
from batchnorm.backends.fused import ACTIVATIONS
from batchnorm.backends.torch.place import UNAVAILABLE
from batchnorm.backends.torch.watchers import PLAIN, observed

if UNAVAILABLE is None:
    from batchnorm.backends.torch.call import CODES, HUGE, kernels
    from batchnorm.backends.torch.derivatives import run

State = dict[str, torch.Tensor]
Lies = tuple[torch.memory_format, Any]
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_OF_STATE = {"moving_mean", "moving_variance", "skipped_updates", "num_updates"}


class InPlace(State):
    """A state whose tensors may become the new state's: a module's buffers."""


class Ready:
    """What the calls of a plan have in common, as the kernels take it."""

    def __init__(self, plan: Any) -> None:
        options, view = plan.options, plan.view
        self.sizes = view.canonical
        a, g, b, c, d = view.canonical
        self.read = [(torch.contiguous_format, (ctypes.c_int64 * 5)(a, g, b, c, d))]
        native = CHANNELS_LAST.get(len(view.shape))
        if view.axes == (1,) and native is not None:
            self.read.append((native, (ctypes.c_int64 * 5)(a, g, b * d, c, 1)))
        self.rows = view.row_shape
        self.length = self.rows[0] * self.rows[1]
        self.statistics = getattr(torch, plan.dtype)
        self.step = self.length * self.statistics.itemsize
        self.code = CODES[self.statistics]
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

    def holds(self, vector: Any) -> bool:
        """Whether a vector lies as the kernels read it."""
        return (
            type(vector) in PLAIN
            and vector.dtype is self.statistics
            and vector.numel() == self.length
            and vector.is_contiguous()
            and vector.is_cpu
            and not vector.is_neg()
        )


def whole(
    plan: Any, x: torch.Tensor, parameters: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[torch.Tensor, State] | None:
    """What the steps return; None where they must be taken."""
    if type(x) not in PLAIN or x.is_neg() or observed():
        return None
    ready = plan.ready.get("torch")
    if ready is None:
        ready = plan.ready["torch"] = Ready(plan)
    lies = ready.lies(x)
    if lies is None:
        return None
    gamma, beta = parameters.get("gamma"), parameters.get("beta")
    mean, variance = state.get("moving_mean"), state.get("moving_variance")
    for vector in (gamma, beta, mean, variance):
        if vector is not None and not ready.holds(vector):
            return None
    if (
        (plan.needed and (mean is None or variance is None))
        or len(parameters) != (gamma is not None) + (beta is not None)
        or not state.keys() <= _OF_STATE  # others have a shape that must be right
    ):
        return None
    learns = torch.is_grad_enabled() and _learns(x, gamma, beta)
    if not plan.batch:
        infer = _infer_learning if learns else _infer
        return infer(ready, lies, x, gamma, beta, mean, variance), dict(state)
    skipped, number = state.get("skipped_updates"), state.get("num_updates")
    if not all(one is None or type(one) in PLAIN for one in (skipped, number)):
        return None
    if skipped is not None and not _counts(skipped, ready.length):
        return None
    counted = number if number is not None and _counts(number, 1) else None
    forward = _forward_learning if learns else _forward
    y, moments = forward(ready, lies, x, gamma, beta)
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
    code = kernels.bn_remember(
        ready.code,
        *ready.rows,
        *_pointers(ready, moments),
        *ready.how,
        mean.data_ptr(),
        variance.data_ptr(),
        _pointer(skipped),
        _pointer(counted),
        new["moving_mean"].data_ptr(),
        new["moving_variance"].data_ptr(),
        _pointer(new.get("skipped_updates")),
        None if counted is None else new["num_updates"].data_ptr(),
    )
    check(kernels, code)
    if number is not None and counted is None:  # torch's modules count in int64
        new["num_updates"] = number + 1 if own is None else number.add_(1)
    return y, new


def _learns(*tensors: torch.Tensor | None) -> bool:
    for one in tensors:  # noqa: SIM110 - a generator in `any` would cost twice as much
        if one is not None and one.requires_grad:
            return True
    return False


def _counts(counter: torch.Tensor, length: int) -> bool:
    """Whether a counter lies as the kernels read it."""
    return (
        counter.dtype is torch.int32
        and counter.numel() == length
        and counter.is_contiguous()
        and counter.is_cpu
    )


def _pointers(ready: Ready, moments: torch.Tensor) -> tuple[int, int, int, int]:
    """Mean, remainder, variance and count in the one tensor that holds them."""
    at, step = moments.data_ptr(), ready.step
    return at, at + step, at + 2 * step, at + 3 * step


def _fresh(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    if out.nbytes >= HUGE:
        kernels.bn_advise_huge(out.data_ptr(), out.nbytes)
    return out


def _pointer(vector: torch.Tensor | None) -> int | None:
    return None if vector is None else vector.data_ptr()


def _infer(
    ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
) -> torch.Tensor:
    y = _fresh(x)
    code = kernels.bn_standardize(
        CODES[x.dtype],
        lies[1],
        x.data_ptr(),
        None,
        None,
        mean.data_ptr(),
        None,
        variance.data_ptr(),
        ready.epsilon,
        _pointer(gamma),
        _pointer(beta),
        ready.activation,
        y.data_ptr(),
    )
    check(kernels, code)
    return y


def _forward(
    ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    y = _fresh(x)
    moments = torch.empty(3 * ready.length + ready.rows[0], dtype=ready.statistics)
    code = kernels.bn_forward(
        CODES[x.dtype],
        lies[1],
        x.data_ptr(),
        None,
        None,
        ready.epsilon,
        _pointer(gamma),
        _pointer(beta),
        ready.activation,
        *_pointers(ready, moments),
        y.data_ptr(),
    )
    check(kernels, code)
    return y, moments


class _Forward(torch.autograd.Function):
    """y and the moments; the derivative is that of the operator `forward`."""

    @staticmethod
    def forward(ctx: Any, ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any) -> Any:
        y, moments = _forward(ready, lies, x, gamma, beta)
        ctx.ready, ctx.lies = ready, lies
        ctx.save_for_backward(x, gamma, beta, moments)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)
        return y, moments

    @staticmethod
    def backward(ctx: Any, dy: Any, _: Any) -> Any:
        if dy is None:
            return None, None, None, None, None
        x, gamma, beta, moments = ctx.saved_tensors
        ready = ctx.ready
        if _must_see(ctx, x, dy):
            n = ready.length
            vectors = [moments[i * n : (i + 1) * n].view(ready.rows) for i in range(3)]
            vectors.append(moments[3 * n :].view(-1, 1))
            return None, None, *_by_operator(ready, x, dy, gamma, beta, vectors, False)
        at = _pointers(ready, moments)
        return None, None, *_backward(ready, ctx.lies, x, dy, gamma, beta, at, False)


class _Infer(torch.autograd.Function):
    """y by statistics that are constants."""

    @staticmethod
    def forward(
        ctx: Any, ready: Ready, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
    ) -> Any:
        ctx.ready, ctx.lies = ready, lies
        # as they are now: a step may update them in place before the gradient is asked for
        ctx.save_for_backward(x, gamma, beta, mean.clone(), variance.clone())
        return _infer(ready, lies, x, gamma, beta, mean, variance)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, gamma, beta, mean, variance = ctx.saved_tensors
        ready = ctx.ready
        if _must_see(ctx, x, dy):
            rows = (mean.reshape(ready.rows), None, variance.reshape(ready.rows), None)
            found = _by_operator(ready, x, dy, gamma, beta, rows, True)
        else:
            at = (mean.data_ptr(), None, variance.data_ptr(), None)
            found = _backward(ready, ctx.lies, x, dy, gamma, beta, at, True)
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


def _backward(
    ready: Ready, lies: Lies, x: Any, dy: Any, gamma: Any, beta: Any, at: Any, frozen: bool
) -> Any:
    """The gradients of x, gamma and beta; `at` is where mean, remainder, variance and count are."""
    dx = _fresh(x)
    sum_dy, sum_dy_xh = (
        torch.empty(ready.length, dtype=ready.statistics) if one is None else torch.empty_like(one)
        for one in (beta, gamma)
    )
    mean, remainder, variance, count = at
    code = kernels.bn_backward(
        CODES[x.dtype],
        lies[1],
        x.data_ptr(),
        dy.data_ptr(),
        None,
        None,
        count,
        mean,
        remainder,
        variance,
        ready.epsilon,
        _pointer(gamma),
        _pointer(beta),
        ready.activation,
        None,
        frozen,
        sum_dy.data_ptr(),
        sum_dy_xh.data_ptr(),
        dx.data_ptr(),
    )
    check(kernels, code)
    return dx, None if gamma is None else sum_dy_xh, None if beta is None else sum_dy


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
        dx, sum_dy, sum_dy_xh = run("backward", *operands)
    d_gamma = None if gamma is None else sum_dy_xh.reshape(gamma.shape)
    return dx, d_gamma, None if beta is None else sum_dy.reshape(beta.shape)
