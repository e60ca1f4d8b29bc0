"""Modules of `batchnorm.flax` beside flax's own, nnx and linen: a jitted training step of one.

A step is forward and backward, and what is remembered: y, the new statistics, and the gradients of
x, gamma and beta. And a step of four layers on a small input, each with ReLU: XLA runs a program of
few operations in the thread that asks, and one of more in several, which costs more than a small
layer does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
from flax import nnx

import batchnorm.flax
import batchnorm.flax.linen
from benchmarks import with_jax
from benchmarks.cases import Case, Settings
from benchmarks.ours import EPSILON, MOMENTUM
from benchmarks.timing import Contest

LEAST = 5  # megabytes: below, a call costs more than its arithmetic
FOUR = "linen, 4 layers"
LAYERS: dict[str, tuple[Any, Any]] = {
    "nnx": (batchnorm.flax.BatchNorm, nnx.BatchNorm),
    "linen": (batchnorm.flax.linen.BatchNorm, flax.linen.BatchNorm),
}
LAYERS[FOUR] = LAYERS["linen"]


def cases(settings: Settings) -> list[Case]:
    """Dense inputs, where the call counts, and the large spatial ones."""
    sizes = settings.all_sizes()
    spatial = [one for one in sizes if one.positions]
    dense = [one for one in sizes if not one.positions]
    big = [one for one in spatial if one.megabytes("float32") > LEAST] or spatial
    return [
        Case("forward + backward", size, "float32", layout, api)
        for api in LAYERS
        for size in (dense if api == FOUR else dense + big)
        for layout in size.layouts(settings.layouts)
    ]


def contest(case: Case, settings: Settings) -> Contest:
    given = with_jax.given(case)
    step = {"nnx": _nnx, "linen": _linen, FOUR: _four}[case.variant]
    ours, theirs = (step(layer, given) for layer in LAYERS[case.variant])
    return Contest({"ours": ours}, peers={"flax": theirs}, rounds=1 if case.size.positions else 5)


def _options(given: Any) -> dict[str, Any]:
    return {"momentum": MOMENTUM, "epsilon": EPSILON, "axis": given.axis}


def _nnx(layer: Any, given: Any) -> Callable[[], Any]:
    made = layer(given.gamma.size, rngs=nnx.Rngs(0), **_options(given))
    graph, parameters, rest = nnx.split(made, nnx.Param, ...)

    def normalize(x: Any, parameters: Any, rest: Any) -> Any:
        module = nnx.merge(graph, parameters, rest, copy=True)  # to be changed in this trace
        y = module(x, use_running_average=False)
        return y, nnx.state(module, nnx.Not(nnx.Param))

    return _stepping(normalize, given, parameters, rest)


class _Layers(flax.linen.Module):
    """Four layers, each with ReLU."""

    layer: Callable[[], Any]

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(4):
            x = flax.linen.relu(self.layer()(x))
        return x


def _linen(layer: Any, given: Any) -> Callable[[], Any]:
    return _step_of(layer(use_running_average=False, **_options(given)), given)


def _four(layer: Any, given: Any) -> Callable[[], Any]:
    return _step_of(_Layers(lambda: layer(use_running_average=False, **_options(given))), given)


def _step_of(module: Any, given: Any) -> Callable[[], Any]:
    variables = module.init(jax.random.key(0), given.x)

    def normalize(x: Any, parameters: Any, rest: Any) -> Any:
        return module.apply({"params": parameters, **rest}, x, mutable=list(rest))

    parameters = variables["params"]
    rest = {name: one for name, one in variables.items() if name != "params"}
    return _stepping(normalize, given, parameters, rest)


def _stepping(normalize: Any, given: Any, parameters: Any, rest: Any) -> Callable[[], Any]:
    def step(x: Any, dy: Any, parameters: Any, rest: Any) -> Any:
        y, pull, new = jax.vjp(lambda *of: normalize(*of, rest), x, parameters, has_aux=True)
        return y, pull(dy), new

    compiled = jax.jit(step)
    return lambda: jax.block_until_ready(compiled(given.x, given.dy, parameters, rest))
