"""JAX, under jit as it is used: what is measured there, and what it has of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from benchmarks import ours
from benchmarks.cases import Case
from benchmarks.ours import EPSILON, MOMENTUM, Function, Given

relu = jax.nn.relu


def tensor(array: np.ndarray, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(array, dtype)


parameter = tensor  # gradients are taken of any


def given(case: Case, renorm: bool = False, native: bool = False) -> Given:
    """The tensors of a case."""
    return ours.given(case, tensor, parameter, renorm)


def forward_backward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y, the new state, and the gradients of x, gamma and beta."""
    x, dy, gamma, beta, state, extra, _ = given

    def step(x: Any, dy: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> Any:
        def of(x: Any, gamma: Any, beta: Any) -> Any:
            y, *rest = function(x, gamma, beta, state, extra)
            return y, rest

        y, pull, rest = jax.vjp(of, x, gamma, beta, has_aux=True)
        return y, pull(dy), rest

    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(x, dy, gamma, beta, state, extra))


def forward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y, and the state."""
    x, _, gamma, beta, state, extra, _ = given
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(x, gamma, beta, state, extra))


def one_replica(given: Given) -> Function:
    """Ours, synchronized over the only device of an axis."""
    synchronized = ours.plain(given, synchronized="batch")
    parts, whole = PartitionSpec("batch"), PartitionSpec()
    return jax.shard_map(
        synchronized,
        mesh=Mesh(np.array(jax.devices()[:1]), ("batch",)),
        in_specs=(parts, whole, whole, whole, whole),
        out_specs=(parts, whole),
    )


def peers(case: Case, given: Given, training: bool) -> dict[str, Function]:
    """Batch normalization written in jax.numpy, with two passes, and flax's where it is there."""
    both = small_peers(given, training)
    return both if case.what == "forward + backward" else {"jax.jit": both["jax.jit"]}


SMALL = forward, forward_backward


def small_peers(given: Given, training: bool) -> dict[str, Function]:
    """The same two, whatever is measured."""
    result = {"jax.jit": _written(given, training)}
    if importlib.util.find_spec("flax") is not None:
        result["flax"] = _flax(given, training)
    return result


def _written(given: Given, training: bool) -> Function:
    axis = given.axis % given.x.ndim
    axes = tuple(one for one in range(given.x.ndim) if one != axis)
    shape = tuple(size if one == axis else 1 for one, size in enumerate(given.x.shape))

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any, Any]:
        old = state["moving_mean"], state["moving_variance"]
        wide = x.astype(jnp.float32)
        if training:
            mean = wide.mean(axes, keepdims=True)
            variance = jnp.square(wide - mean).mean(axes, keepdims=True)
            measured = mean.reshape(-1), variance.reshape(-1)
            old = tuple(
                MOMENTUM * one + (1 - MOMENTUM) * two
                for one, two in zip(old, measured, strict=True)
            )
        else:
            mean, variance = (one.reshape(shape) for one in old)
        factor = jax.lax.rsqrt(variance + EPSILON) * gamma.reshape(shape)
        return ((wide - mean) * factor + beta.reshape(shape)).astype(x.dtype), old

    return function


def _flax(given: Given, training: bool) -> Function:
    from flax import linen

    layer = linen.BatchNorm(
        use_running_average=not training,
        axis=given.axis,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=given.x.dtype,
    )

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> Any:
        statistics = {"mean": state["moving_mean"], "var": state["moving_variance"]}
        variables = {"params": {"scale": gamma, "bias": beta}, "batch_stats": statistics}
        return layer.apply(variables, x, mutable=["batch_stats"])

    return function
