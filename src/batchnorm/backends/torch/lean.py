"""The composite path of PyTorch: one derivative of its own, which keeps x and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from batchnorm._moments import Moments, unbiased
from batchnorm.backends import composite, derivative
from batchnorm.backends.composite import Case, Factors
from batchnorm.backends.torch import operations
from batchnorm.backends.torch.watchers import transformed


def standardize(
    x: torch.Tensor,
    case: Case,
    used: Moments,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    live: torch.Tensor | None = None,
    replicas: Any = None,
    centered: torch.Tensor | None = None,
) -> torch.Tensor:
    """y, whose derivative is the total one; see `composite.standardize`."""
    operands = (x, case, used, scale, offset, live, replicas)
    if transformed():
        return derivative.differentiable(operations, *operands)
    return _Standardize.apply(*operands, (centered,))


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        case: Case,
        used: Moments,
        scale: torch.Tensor | None,
        offset: torch.Tensor | None,
        live: torch.Tensor | None,
        replicas: Any,
        known: tuple[torch.Tensor | None],  # in a tuple: y may take its memory
    ) -> torch.Tensor:
        factors = composite.factors_of(operations, used.variance, scale, case.epsilon)
        ctx.case, ctx.replicas = case._replace(weights=None), replicas
        ctx.save_for_backward(x, case.weights, scale, offset, live, *factors, *used)
        (centered,) = known
        if centered is None:  # what is left out passes no gradient: `backward` knows
            centered, _ = composite.centered_on(operations, x, case, used)
        return composite.standardize(operations, x, case, used, scale, offset, factors, centered)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weights, scale, offset, live, inverse, slope, *moments = ctx.saved_tensors
        case, used = ctx.case._replace(weights=weights), Moments(*moments)
        factors: Factors | None = Factors(inverse, slope)
        if torch.is_grad_enabled():  # create_graph: derivatives of this one are wanted
            used = derivative.attached(operations, x, case, used, live, ctx.replicas)
            factors = None
        dx, d_scale, d_offset = derivative.backward(
            operations, x, dy, case, used, scale, offset, live, False, ctx.replicas, factors
        )
        return dx, None, None, d_scale, d_offset, None, None, None


def remember(
    state: Mapping[str, torch.Tensor],
    measured: Moments,
    momentum: float,
    is_unbiased: bool,
    propagate: bool,
    filled: bool,
) -> dict[str, torch.Tensor] | None:
    """The plain moving averages after a step; None for a state that is laid out otherwise.

    A variance that is finite says that the mean is: it took the distance of every value.
    """
    names = ("moving_mean", "moving_variance")
    old = [state[name].detach() for name in names]
    if transformed() or any(one.dtype is not measured.mean.dtype for one in old):
        return None
    kept = unbiased(operations, measured) if is_unbiased else measured
    values = [one.reshape(old[0].shape) for one in (kept.mean + kept.remainder, kept.variance)]
    # exact at both ends, unlike old + (1 - momentum) * (value - old)
    moved = torch._foreach_lerp(old, values, 1 - momentum)
    counters = [name for name in ("num_updates", "skipped_updates") if name in state]
    one_more = torch._foreach_add([state[name] for name in counters], 1) if counters else []
    new = dict(zip(counters, one_more, strict=True))
    if propagate and filled:
        new.pop("skipped_updates", None)
        return new | dict(zip(names, moved, strict=True))
    usable = values[1] < torch.inf  # no, where it is NaN
    if not filled:
        seen = (measured.count != 0).expand(measured.mean.shape).reshape(usable.shape)
        usable = seen if propagate else usable & seen
    for name, now, before in zip(names, moved, old, strict=True):
        new[name] = torch.where(usable, now, before)
    if "skipped_updates" in new:
        skipped = state["skipped_updates"]
        new["skipped_updates"] = torch.where(usable, skipped, new["skipped_updates"])
    return new
