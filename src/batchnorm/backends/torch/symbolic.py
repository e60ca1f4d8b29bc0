"""`torch.fx.symbolic_trace`: a call with a Proxy, of which nothing is known, not even its rank."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

Proxy = torch.fx.Proxy


def record(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What `batch_norm` returns for a Proxy.

    Inference becomes operations of PyTorch where the axis can be found without x's rank; everything
    else becomes one call of `function`, which must be there to be imported where that runs.
    """
    defaults = inspect.signature(function).parameters
    options = {
        name: value for name, value in arguments.items() if value is not defaults[name].default
    }
    x, parameters, state = (options.pop(name) for name in ("x", "parameters", "state"))
    axis = options.get("axis", -1)
    if (
        options.get("training", False) is False
        and not options.keys() & _DECIDING
        and isinstance(axis, int)
        and (axis < 0 or axis == 1)
        and not isinstance(parameters, Proxy)
        and not isinstance(state, Proxy)
        and {"moving_mean", "moving_variance"} <= state.keys()
    ):
        y = _affine(x, axis, parameters, state, arguments["epsilon"])
        if "residual" in options:
            y = y + options["residual"]
        return torch.relu(y) if options.get("activation") == "relu" else y, dict(state)
    return x.tracer.create_proxy("call_function", function, (x, parameters, state), options)


# what may make another thing of a call that does not train
_DECIDING = {"mask", "batch_weights", "statistics", "update_statistics"}


def _affine(x: Any, axis: int, parameters: Any, state: Any, epsilon: float) -> Any:
    def recorded(vector: Any) -> Any:
        """A vector as it will be, not as it is now: an operation of the graph."""
        return x.tracer.create_proxy("call_function", torch.reshape, (vector, behind), {})

    behind = (-1, *[1] * (-axis - 1))
    gamma, beta = parameters.get("gamma"), parameters.get("beta")
    mean, variance = state["moving_mean"], state["moving_variance"]
    if axis == 1:
        how = (gamma, beta, False, 0.0, epsilon)
        return torch.nn.functional.batch_norm(x, mean, variance, *how)
    factor = torch.rsqrt(recorded(variance) + epsilon)
    if gamma is not None:
        factor = factor * recorded(gamma)
    y = (x - recorded(mean)) * factor
    if beta is not None:
        y = y + recorded(beta)
    return y.type_as(x)
