"""PyTorch. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import builtins
import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from batchnorm import _native
from batchnorm._moments import Moments
from batchnorm.backends import composite, torch_replicas
from batchnorm.backends.fused import ACTIVATIONS, Vectors, recomputed, vectors
from batchnorm.backends.torch_replicas import Replicas

_ops = sys.modules[__name__]
UNAVAILABLE = _native.load_operators("torch")
if UNAVAILABLE is None:
    from batchnorm._native.torch import kernels, one_by_one

where = torch.where
sqrt = torch.sqrt
add = torch.add
multiply = torch.mul
isfinite = torch.isfinite
equal = torch.eq
all = torch.all
ones_like = torch.ones_like
zeros_like = torch.zeros_like
transpose = torch.permute
concatenate = torch.cat
replicas = torch_replicas.replicas
aligned = torch_replicas.aligned
all_gather = torch_replicas.all_gather
sum_of_zeros = torch_replicas.sum_of_zeros


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def asarray(value: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, device=like.device)


_NAMES = {
    one: str(one).removeprefix("torch.") for one in vars(torch).values() if type(one) is torch.dtype
}


def dtype(x: torch.Tensor) -> str:
    return _NAMES[x.dtype]


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    wanted = getattr(torch, dtype)
    return x if x.dtype is wanted else x.to(wanted)


def reshape(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else x.reshape(shape)


def broadcast_to(x: torch.Tensor, shape: Sequence[Any]) -> torch.Tensor:
    return x if x.shape == tuple(shape) else torch.broadcast_to(x, shape)


def shape(x: torch.Tensor) -> tuple[Any, ...]:
    return tuple(x.shape)


runtime_shape = shape


def full(shape: Sequence[Any], value: Any, dtype: str, like: torch.Tensor) -> torch.Tensor:
    return torch.full(shape, value, dtype=getattr(torch, dtype), device=like.device)


def maximum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, min=y)


def minimum(x: torch.Tensor, y: Any) -> torch.Tensor:
    return torch.clamp(x, max=y)


def stop_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


def sum(x: torch.Tensor, axes: Any) -> torch.Tensor:
    return torch.sum(x, axes, keepdim=True)


wide_sum = sum  # torch adds in cascades: float32 is close enough for a shift


def pin(x: torch.Tensor, dtype: str) -> torch.Tensor:
    return cast(x, dtype)


def concrete(value: Any) -> Any:
    """The number in a scalar; None where only the compiled program will know it."""
    return None if torch.compiler.is_compiling() and is_tensor(value) else value.item()


def on_host(tensors: Sequence[torch.Tensor]) -> list[Any] | None:
    """The values as NumPy arrays, where that is free, else None. Not to be written."""
    if torch.compiler.is_compiling() or _observed():
        return None
    if not builtins.all(type(one) in _PLAIN and one.device.type == "cpu" for one in tensors):
        return None
    return [one.detach().numpy() for one in tensors]


def from_host(array: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def check(condition: Any, error: type[Exception], message: str, value: Any) -> Any:
    """value, unless the condition is false: then the error (RuntimeError where compiled)."""
    if torch.compiler.is_compiling():
        # Inductor (torch 2.13) pastes the message into a C++ string literal as it stands
        torch._assert_async(condition, message.replace('"', "'"))
    elif not condition:
        raise error(message)
    return value


def recomputing() -> bool:
    """Whether a backward pass is running: then `torch.utils.checkpoint` is calling again.

    Its second call would update moving statistics twice (pytorch/pytorch#96136).
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def why_not(x: torch.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if UNAVAILABLE is None and x.device.type != "cpu":
        return f"The native kernels run on the CPU; the input is on {x.device}."
    return UNAVAILABLE


def moments(x: torch.Tensor, weights: torch.Tensor | None, fused: bool) -> Moments:
    """See `composite.moments`. Fused moments are constants: `standardize` has their derivative."""
    if not fused:
        return composite.moments(_ops, x, weights)
    return Moments(*_operator("moments")(x.detach(), weights))


def standardize(
    x: torch.Tensor,
    moments: Moments,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    live: bool | torch.Tensor,
    activation: str | None,
    fused: bool,
    replicas: Replicas | None = None,
) -> torch.Tensor:
    """See `composite.standardize`. `live` tells whose moments came from x: all, none, or which.

    With `replicas`, the moments came from x on all of them.
    """
    if not fused:
        return composite.standardize(_ops, x, moments, scale, offset, epsilon, weights, activation)
    given = vectors(_ops, x, moments, scale, offset, live)
    operands = (
        x,
        weights,
        *(None if vector is None else vector.contiguous() for vector in given),
        epsilon,
        ACTIVATIONS[activation],
    )
    if replicas is not None and live is not False:
        return _StandardizeOver.apply(replicas, *operands)
    return _operator("standardize")(*operands, live is False)


def forward(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    epsilon: float,
    weights: torch.Tensor | None,
    activation: str | None,
    fused: bool,
) -> tuple[torch.Tensor, Moments]:
    """`moments`, then `standardize` with them: one kernel where it is fused."""
    if not fused:
        measured = moments(x, weights, False)
        return standardize(
            x, measured, scale, offset, epsilon, weights, True, activation, False
        ), measured
    _, g, _, c, _ = x.shape
    scale, offset = (
        None if v is None else broadcast_to(v, (g, c)).contiguous() for v in (scale, offset)
    )
    y, *measured = _operator("forward")(x, weights, scale, offset, epsilon, ACTIVATIONS[activation])
    return y, Moments(*measured)


def affine(
    u: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    activation: str | None,
) -> torch.Tensor:
    """See `composite.affine`."""
    return composite.affine(_ops, u, scale, offset, activation)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """What the derivative of `standardize` needs: x and vectors, nothing else of x's size."""
    x, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    if ctx.frozen:  # moving statistics: a layer may update them in place before the backward pass
        given[0], given[2] = given[0].clone(), given[2].clone()
    ctx.save_for_backward(x, weights, *given)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weights, scale, offset, ctx.epsilon, ctx.activation = inputs
    _, mean, remainder, variance, count = output
    ctx.frozen = False
    ctx.save_for_backward(x, weights, mean, remainder, variance, count, scale, offset, None)
    ctx.set_materialize_grads(False)


def _derivative(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, weights, *given = ctx.saved_tensors
    dx, sum_dy, sum_dy_xh = _operator("backward")(
        x, dy, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen
    )
    *_, scale, offset, _ = given
    return dx, None if scale is None else sum_dy_xh, None if offset is None else sum_dy


def _standardize_derivative(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    dx, d_scale, d_offset = _derivative(ctx, dy)
    return dx, None, None, None, None, None, d_scale, d_offset, None, None, None, None


def _forward_derivative(ctx: Any, dy: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 6
    dx, d_scale, d_offset = _derivative(ctx, dy)
    return dx, None, d_scale, d_offset, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, dy, weights, *given, ctx.epsilon, ctx.activation, ctx.frozen = inputs
    ctx.save_for_backward(x, dy, weights, *given)


def _second_derivative(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    """The derivative of `backward`, by differentiating the composite path twice."""
    x, dy, weights, *vectors_ = ctx.saved_tensors
    given = Vectors(*vectors_)
    absent = (given.scale is None, given.offset is None)
    ones = torch.ones_like(given.mean)
    scale = ones if given.scale is None else given.scale
    offset = torch.zeros_like(ones) if given.offset is None else given.offset

    def gradients(
        x: torch.Tensor, dy: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        def y_of(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
            full = given._replace(scale=scale, offset=offset)
            return recomputed(_ops, x, weights, full, ctx.epsilon, ctx.activation, ctx.frozen)

        dx, sum_dy_xh, sum_dy = torch.func.vjp(y_of, x, scale, offset)[1](dy)
        return dx, sum_dy, sum_dy_xh

    values, pull = torch.func.vjp(gradients, x, dy, scale, offset)
    d_x, d_dy, d_scale, d_offset = pull(
        tuple(
            torch.zeros_like(v) if u is None else u for u, v in zip(upstream, values, strict=True)
        )
    )
    d_scale, d_offset = (
        None if missing else grad for missing, grad in zip(absent, (d_scale, d_offset), strict=True)
    )
    return d_x, d_dy, None, None, None, None, None, d_scale, d_offset, None, None, None, None


_RULES = {
    "standardize": (_standardize_derivative, _save),
    "forward": (_forward_derivative, _save_forward),
    "backward": (_second_derivative, _save_backward),
}
if UNAVAILABLE is None:
    for _name, (_rule, _setup) in _RULES.items():
        torch.library.register_autograd(f"batchnorm::{_name}", _rule, setup_context=_setup)


class _StandardizeOver(torch.autograd.Function):
    """`standardize` with the moments of all replicas: its derivative adds two vectors over them."""

    @staticmethod
    def forward(ctx: Any, replicas: Replicas, *operands: Any) -> torch.Tensor:
        *kept, ctx.epsilon, ctx.activation = operands
        ctx.replicas = replicas
        ctx.save_for_backward(*kept)
        return torch.ops.batchnorm.standardize(*operands, False)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weights, *vectors_ = ctx.saved_tensors
        given, how = Vectors(*vectors_), (ctx.epsilon, ctx.activation)
        if torch.is_grad_enabled():  # create_graph: derivatives of this one are wanted
            dx, d_scale, d_offset = _exact_derivative(ctx.replicas, x, dy, weights, given, how)
        else:
            dx, d_scale, d_offset = _derivative_over(ctx.replicas, x, dy, weights, given, how)
        return None, dx, None, None, None, None, None, d_scale, d_offset, None, None, None


def _derivative_over(
    replicas: Replicas,
    x: torch.Tensor,
    dy: torch.Tensor,
    weights: torch.Tensor | None,
    given: Vectors,
    how: tuple[float, int],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    mean, remainder, variance, count, scale, offset, live = given
    where = (x, dy, weights, mean, remainder, variance)
    sum_dy, sum_dy_xh = torch.ops.batchnorm.backward_sums(*where, scale, offset, *how)
    both = torch_replicas.all_reduce(torch.cat((sum_dy, sum_dy_xh), 1), replicas)
    sums = (half.contiguous() for half in both.chunk(2, 1))
    dx = torch.ops.batchnorm.backward_input(*where, count, scale, offset, live, *sums, *how)
    return dx, None if scale is None else sum_dy_xh, None if offset is None else sum_dy


def _exact_derivative(
    replicas: Replicas,
    x: torch.Tensor,
    dy: torch.Tensor,
    weights: torch.Tensor | None,
    given: Vectors,
    how: tuple[float, int],
) -> tuple[torch.Tensor | None, ...]:
    """The same with all its derivatives, through the composite path."""
    y = recomputed(_ops, x, weights, given, *how, False, replicas)
    wanted = {0: x, 1: given.scale, 2: given.offset}
    wanted = {i: one for i, one in wanted.items() if one is not None and one.requires_grad}
    found = torch.autograd.grad(y, list(wanted.values()), dy, create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return gradients.get(0), gradients.get(1), gradients.get(2)


def _operator(name: str) -> Any:
    """An operator of the kernels, in the form that serves whoever looks on."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.batchnorm, name)
    if torch._C._are_functorch_transforms_active():
        return _function(name).apply if name in _RULES else getattr(torch.ops.batchnorm, name)
    return getattr(torch.ops.batchnorm, name) if _observed() else functools.partial(_call, name)


def _observed() -> bool:
    """Whether someone must see every operation: a transformation, a tracer, the profiler."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _call(name: str, *operands: Any) -> Any:
    """The kernel past torch's dispatcher, which takes longer than a small tensor: 25 us against 10.

    Subclasses of Tensor want the dispatcher.
    """
    tensors = [one for one in operands if isinstance(one, torch.Tensor)]
    if not builtins.all(type(one) in _PLAIN for one in tensors):
        return getattr(torch.ops.batchnorm, name)(*operands)
    if torch.is_grad_enabled() and builtins.any(one.requires_grad for one in tensors):
        return _past_dispatcher(name).apply(*operands)
    return kernels[name](*operands)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


@functools.cache
def _past_dispatcher(name: str) -> Any:
    """The kernel as an autograd.Function of the plain form; the other one inspects signatures."""
    rule, setup = _RULES[name]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Any) -> Any:
            output = kernels[name](*operands)
            setup(ctx, operands, output)
            return output

        backward = staticmethod(rule)

    return Function


@functools.cache
def _function(name: str) -> Any:
    """The operator as an autograd.Function: torch.func knows no other custom derivatives.

    (torch 2.13: what `register_autograd` makes has no `setup_context`.)
    """
    operator = getattr(torch.ops.batchnorm, name)
    rule, setup = _RULES[name]

    class Function(torch.autograd.Function):
        forward = staticmethod(lambda *operands: operator(*operands))
        setup_context = staticmethod(setup)
        backward = staticmethod(rule)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *operands: Any) -> Any:
            return one_by_one(_operator(name))(info, in_dims, *operands)

    return Function
