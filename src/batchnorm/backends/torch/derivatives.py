"""The kernels with their derivatives, in the form that serves whoever looks on.

compiled, traced, profiled     operators of torch.library
under torch.func               autograd.Functions that have a vmap rule
else                           past torch's dispatcher, which takes longer than a small tensor
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import torch

from batchnorm._moments import Moments
from batchnorm.backends.fused import ACTIVATIONS, Sizes, Vectors, exact_backward
from batchnorm.backends.torch import operations
from batchnorm.backends.torch.operators import one_by_one
from batchnorm.backends.torch.place import UNAVAILABLE
from batchnorm.backends.torch.replicas import Replicas, all_reduce
from batchnorm.backends.torch.watchers import PLAIN, observed

if UNAVAILABLE is None:
    from batchnorm.backends.torch.kernels import kernels
    from batchnorm.backends.torch.kernels import remember as kernels_remember


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """What the derivative of `standardize` needs: x and vectors, nothing else of x's size."""
    x, ctx.sizes, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    if ctx.frozen:  # moving statistics: a layer may update them in place before the backward pass
        given[0], given[2] = given[0].clone(), given[2].clone()
    ctx.save_for_backward(x, weights, *given)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.sizes, weights, scale, offset, ctx.epsilon, ctx.activation = inputs
    _, *measured = output
    ctx.frozen = False
    ctx.save_for_backward(x, weights, *measured, scale, offset, None)
    ctx.mark_non_differentiable(*measured)
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, weights, *given = ctx.saved_tensors
    # torch.autograd.grad(is_grads_batched=True): tensors without memory, which no mode tells of
    batched = torch._C._functorch.is_legacy_batchedtensor(dy)
    backward = torch.ops.batchnorm.backward if batched else functools.partial(run, "backward")
    dx, sum_dy, sum_dy_xh = backward(
        x, ctx.sizes, dy, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen
    )
    *_, scale, offset, _ = given
    return dx, None if scale is None else sum_dy_xh, None if offset is None else sum_dy


def _save_add(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """With a residual, y too where it says what the activation passes on: the next layer has it."""
    x, ctx.sizes, _, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    if ctx.frozen:
        given[0], given[2] = given[0].clone(), given[2].clone()
    ctx.save_for_backward(x, output if ctx.activation else None, weights, *given)


def _save_forward_add(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.sizes, _, weights, scale, offset, ctx.epsilon, ctx.activation = inputs
    y, *measured = output
    ctx.frozen = False
    kept = (x, y if ctx.activation else None, weights, *measured, scale, offset, None)
    ctx.save_for_backward(*kept)
    ctx.mark_non_differentiable(*measured)
    ctx.set_materialize_grads(False)


def _derivative_add(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, y, weights, *given = ctx.saved_tensors
    batched = torch._C._functorch.is_legacy_batchedtensor(dy)
    named = "backward" if y is None else "backward_add"
    backward = getattr(torch.ops.batchnorm, named) if batched else functools.partial(run, named)
    alike = (dy,) if y is None else (dy, y)
    how = (ctx.epsilon, ctx.activation, ctx.frozen)
    dx, *d_residual, sum_dy, sum_dy_xh = backward(x, ctx.sizes, *alike, weights, *given, *how)
    *_, scale, offset, _ = given
    slopes = (None if scale is None else sum_dy_xh, None if offset is None else sum_dy)
    return dx, dy if y is None else d_residual[0], *slopes


def _standardize_add_derivative(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    dx, d_residual, *slopes = _derivative_add(ctx, dy)
    return dx, None, d_residual, None, None, None, None, None, *slopes, None, None, None, None


def _forward_add_derivative(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 8
    dx, d_residual, *slopes = _derivative_add(ctx, dy)
    return dx, None, d_residual, None, *slopes, None, None


def _standardize_derivative(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    dx, d_scale, d_offset = _derivative(ctx, dy)
    return dx, None, None, None, None, None, None, d_scale, d_offset, None, None, None, None


def _forward_derivative(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 7
    dx, d_scale, d_offset = _derivative(ctx, dy)
    return dx, None, None, d_scale, d_offset, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.sizes, dy, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    ctx.save_for_backward(x, dy, weights, *given)


def _second_derivative(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    """The derivative of `backward`, by differentiating its formula."""
    x, dy, weights, *vectors_ = ctx.saved_tensors
    named = dict(zip(("x", "offset", "scale"), upstream, strict=True))
    d_x, d_dy, *affine = _second(ctx, x, dy, None, weights, Vectors(*vectors_), named)
    return d_x, None, d_dy, None, None, None, None, None, *affine, None, None, None, None


def _save_backward_add(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.sizes, dy, y, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    ctx.save_for_backward(x, dy, y, weights, *given)


def _second_derivative_add(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    """The same of `backward_add`, in which y says what the activation passes on."""
    x, dy, y, weights, *vectors_ = ctx.saved_tensors
    named = dict(zip(("x", "residual", "offset", "scale"), upstream, strict=True))
    d_x, d_dy, *affine = _second(ctx, x, dy, y, weights, Vectors(*vectors_), named)
    return d_x, None, d_dy, None, None, None, None, None, None, *affine, None, None, None, None


def _second(
    ctx: Any,
    x: torch.Tensor,
    dy: torch.Tensor,
    y: torch.Tensor | None,
    weights: torch.Tensor | None,
    given: Vectors,
    given_back: dict[str, torch.Tensor],
) -> tuple[Any, ...]:
    """The derivatives by x, dy, scale and offset."""
    how = (ctx.epsilon, ctx.activation if y is None else ACTIVATIONS[None], ctx.frozen)
    named = {"x": x, "dy": dy, "scale": given.scale, "offset": given.offset}
    named = {name: one for name, one in named.items() if one is not None}

    def slopes(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        full = given._replace(**{name: named[name] for name in named.keys() & _AFFINE})
        dy = named["dy"] if y is None else torch.where(y > 0, named["dy"], 0)
        found = exact_backward(operations, named["x"], dy, ctx.sizes, weights, full, *how)
        slopes = {name: one for name, one in found._asdict().items() if one is not None}
        return slopes if y is None else {**slopes, "residual": dy}

    values, pull = torch.func.vjp(slopes, named)
    (found,) = pull(
        {
            name: torch.zeros_like(one) if given_back[name] is None else given_back[name]
            for name, one in values.items()
        }
    )
    return tuple(found.get(name) for name in ("x", "dy", "scale", "offset"))


_AFFINE = {"scale", "offset"}
_RULES = {
    "standardize": (_standardize_derivative, _save),
    "forward": (_forward_derivative, _save_forward),
    "backward": (_second_derivative, _save_backward),
    "standardize_add": (_standardize_add_derivative, _save_add),
    "forward_add": (_forward_add_derivative, _save_forward_add),
    "backward_add": (_second_derivative_add, _save_backward_add),
}
for _name, (_rule, _setup) in _RULES.items():
    torch.library.register_autograd(f"batchnorm::{_name}", _rule, setup_context=_setup)


def moments(x: torch.Tensor, sizes: Sizes, weights: torch.Tensor | None) -> Any:
    """Mean, remainder, variance and count: constants, whose derivative `standardize` has."""
    return run("moments", x.detach(), sizes, weights)


def forward(
    x: torch.Tensor,
    sizes: Sizes,
    weights: torch.Tensor | None,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    activation: int,
    residual: torch.Tensor | None = None,
) -> Any:
    """y, then what `moments` returns."""
    if residual is not None:
        operands = (x, sizes, residual, weights, scale, offset)
        return run("forward_add", *operands, epsilon, activation)
    return run("forward", x, sizes, weights, scale, offset, epsilon, activation)


def standardize(
    x: torch.Tensor,
    sizes: Sizes,
    weights: torch.Tensor | None,
    given: Vectors,
    epsilon: float,
    activation: int,
    frozen: bool,
    replicas: Replicas | None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """y; with `replicas`, the moments came from x on all of them, and there is no residual."""
    if residual is not None:
        how = (epsilon, activation, frozen)
        return run("standardize_add", x, sizes, residual, weights, *given, *how)
    operands = (x, sizes, weights, *given, epsilon, activation)
    if replicas is not None:
        return StandardizeOver.apply(replicas, *operands)
    return run("standardize", *operands, frozen)


def remember(
    state: Mapping[str, torch.Tensor],
    measured: Moments,
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, torch.Tensor] | None:
    """The plain moving averages after a step, by one kernel; None where it does not hold them."""
    if torch.compiler.is_compiling() or observed():
        return None
    on_cpu = measured.mean.is_cpu
    for one in (*state.values(), *measured):
        if type(one) not in PLAIN or one.is_cpu is not on_cpu or one.is_neg():
            return None
    step = kernels_remember if on_cpu else _gpu().remember
    return step(state, measured, momentum, unbiased, propagate)


class StandardizeOver(torch.autograd.Function):
    """`standardize` with the moments of all replicas: its derivative adds two vectors over them."""

    @staticmethod
    def forward(ctx: Any, replicas: Replicas, *operands: Any) -> torch.Tensor:
        x, ctx.sizes, *kept, ctx.epsilon, ctx.activation = operands
        ctx.replicas = replicas
        ctx.save_for_backward(x, *kept)
        return torch.ops.batchnorm.standardize(*operands, False)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weights, *vectors_ = ctx.saved_tensors
        given, how = Vectors(*vectors_), (ctx.epsilon, ctx.activation)
        operands = (x, ctx.sizes, dy, weights)
        found: tuple[Any, ...]
        if torch.is_grad_enabled():  # create_graph: derivatives of this one are wanted
            found = exact_backward(
                operations, x, dy, ctx.sizes, weights, given, *how, False, ctx.replicas
            )
        else:
            found = _backward_over(ctx.replicas, *operands, given, how)
        dx, d_scale, d_offset = found
        return None, dx, None, None, None, None, None, None, d_scale, d_offset, None, None, None


def _backward_over(
    replicas: Replicas,
    x: torch.Tensor,
    sizes: Sizes,
    dy: torch.Tensor,
    weights: torch.Tensor | None,
    given: Vectors,
    how: tuple[float, int],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    mean, remainder, variance, count, scale, offset, live = given
    where = (x, sizes, dy, weights, mean, remainder, variance)
    sum_dy, sum_dy_xh = torch.ops.batchnorm.backward_sums(*where, scale, offset, *how)
    rows = [one.view(mean.shape) for one in (sum_dy, sum_dy_xh)]
    both = all_reduce(torch.cat(rows, 1), replicas)
    sums = (half.contiguous() for half in both.chunk(2, 1))
    dx = torch.ops.batchnorm.backward_input(*where, count, scale, offset, live, *sums, *how)
    return dx, None if scale is None else sum_dy_xh, None if offset is None else sum_dy


def run(name: str, *operands: Any) -> Any:
    """Runs an operator of the kernels."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.batchnorm, name)(*operands)
    if observed():
        transformed = name in _RULES and torch._C._are_functorch_transforms_active()
        seen = _function(name).apply if transformed else getattr(torch.ops.batchnorm, name)
        return seen(*operands)
    attached = False
    for one in operands:
        if isinstance(one, torch.Tensor):
            if type(one) not in PLAIN:  # subclasses of Tensor want the dispatcher
                return getattr(torch.ops.batchnorm, name)(*operands)
            attached = attached or one.requires_grad
    if attached and torch.is_grad_enabled():
        return _past_dispatcher(name).apply(*operands)
    return (kernels if operands[0].is_cpu else _gpu().kernels)[name](*operands)


def _gpu() -> Any:
    """The kernels on GPUs. Their import takes Triton's, so it waits for a tensor there."""
    return importlib.import_module("batchnorm.backends.torch.gpu")


@functools.cache
def _past_dispatcher(name: str) -> Any:
    """The kernel as an autograd.Function of the plain form; the other one inspects signatures."""
    rule, setup = _RULES[name]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Any) -> Any:
            output = (kernels if operands[0].is_cpu else _gpu().kernels)[name](*operands)
            setup(ctx, operands, output)
            return output

        backward = staticmethod(rule)

    return Function


@functools.cache
def _function(name: str) -> Any:
    """The operator as an autograd.Function: torch.func knows no other custom derivatives.

    (torch 2.13: what `register_autograd` makes has no `setup_context`.)
    """
    dispatched = getattr(torch.ops.batchnorm, name)
    rule, setup = _RULES[name]

    class Function(torch.autograd.Function):
        forward = staticmethod(lambda *operands: dispatched(*operands))
        setup_context = staticmethod(setup)
        backward = staticmethod(rule)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *operands: Any) -> Any:
            return one_by_one(functools.partial(run, name))(info, in_dims, *operands)

    return Function
