"""JAX's composite path is lean: how many loops over memory XLA makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import batchnorm
import lean

# As in docs/performance.md: forward, forward with backward, inference (XLA of JAX 0.10.2).
LIMITS = {
    "plain": (15, 24, 2),
    "relu": (15, 25, 2),
    "renorm": (22, 31, 2),
    "weights": (12, 22, 2),
    "ghost": (17, 26, 2),
}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy"}


def counted(function: Callable[..., Any], *operands: Any) -> int:
    text = jax.jit(function).lower(*operands).compile().as_text()
    program = text[text.index("ENTRY") :]
    return sum(name not in FREE for name in re.findall(r"= \S+ ([a-z\-]+)\(", program))


@pytest.mark.parametrize("mode", list(LIMITS))
def test_every_mode_is_a_few_loops(mode: str) -> None:
    options, limits = lean.MODES[mode], LIMITS[mode]
    x = jnp.ones((lean.SAMPLES, 14, 14, 16))
    parameters, state = batchnorm.init(x, renorm="renorm" in options)

    def forward(x: Any, parameters: Any, state: Any, training: bool = True) -> Any:
        return batchnorm.batch_norm(x, parameters, state, training=training, fused=False, **options)

    def step(x: Any, parameters: Any, state: Any, dy: Any) -> Any:
        _, pull, new = jax.vjp(lambda *both: forward(*both, state), x, parameters, has_aux=True)
        return new, pull(dy)

    given = (x, parameters, state)
    found = (
        counted(forward, *given),
        counted(step, *given, x),
        counted(lambda *given: forward(*given, False)[0], *given),
    )
    # another release of XLA may cut a little otherwise
    pairs = zip(found, limits, strict=True)
    assert all(number <= 1.25 * limit for number, limit in pairs), found
