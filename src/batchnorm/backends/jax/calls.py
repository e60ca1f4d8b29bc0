"""The kernels of the platform that a program is compiled for: `kernels.py` or `gpu.py`.

Functions, operands and results are theirs. Which one runs is decided when the program is lowered,
so that what JAX compiles for the CPU in a process with a GPU has the CPU's kernels, or `arrays.py`
where that process has none.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from batchnorm.backends.loading import missing

ARRAYS = (jax.Array, np.ndarray)


@functools.cache
def on(platform: str) -> ModuleType:
    """The kernels of a platform, the names of which are JAX's: cpu, cuda."""
    on_cpu = "arrays" if missing("jax") else "kernels"
    name = {"cpu": on_cpu, "cuda": "gpu"}[platform]
    return importlib.import_module(f"batchnorm.backends.jax.{name}")


def _call(name: str, *operands: Any) -> Any:
    if jax.default_backend() == "cpu":
        return getattr(on("cpu"), name)(*operands)
    leaves, tree = jax.tree.flatten(operands)
    arrays = [one for one in leaves if isinstance(one, ARRAYS)]
    constants = tuple(None if isinstance(one, ARRAYS) else one for one in leaves)
    return _by_platform(name, tree, constants)(*arrays)


@functools.lru_cache(maxsize=1024)
def _by_platform(name: str, tree: Any, constants: tuple[Any, ...]) -> Callable[..., Any]:
    """A kernel of whichever platform, as a function of arrays; `constants` are the other leaves."""

    def of(platform: str) -> Callable[..., Any]:
        def run(*arrays: Any) -> Any:
            given = iter(arrays)
            leaves = [next(given) if one is None else one for one in constants]
            return getattr(on(platform), name)(*jax.tree.unflatten(tree, leaves))

        return run

    each = {platform: of(platform) for platform in ("cuda", "cpu")}
    # jax-triton has no rule of its own for vmap; compiled, so that it runs where the arrays are
    return jax.jit(
        jax.custom_batching.sequential_vmap(
            lambda *arrays: jax.lax.platform_dependent(*arrays, **each)
        )
    )


moments = functools.partial(_call, "moments")
standardize = functools.partial(_call, "standardize")
forward = functools.partial(_call, "forward")
backward = functools.partial(_call, "backward")
backward_sums = functools.partial(_call, "backward_sums")
backward_input = functools.partial(_call, "backward_input")
remember = functools.partial(_call, "remember")
