"""The GPU kernels without a GPU: Triton's interpreter runs them on tensors of the CPU.

They have a process of their own, `make test-gpu`: Triton reads TRITON_INTERPRET when the kernels
are imported, and crashes where TensorFlow was imported before (TensorFlow 2.21, Triton 3.7.1: each
brings an LLVM).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

# The interpreter keeps the number of the program in a global; devices call it side by side.
ONE_AT_A_TIME = threading.Lock()


def skip_without_triton(*others: str) -> None:
    """At the top of each file of tests: they run in the process of `make test-gpu`."""
    for one in ("triton", *others):
        if importlib.util.find_spec(one) is None:
            pytest.skip(f"no {one}, which `make test-gpu` installs", allow_module_level=True)
    if "tensorflow" in sys.modules:
        pytest.skip("Triton crashes beside TensorFlow; see make test-gpu", allow_module_level=True)
    os.environ["TRITON_INTERPRET"] = "1"


def module(name: str) -> ModuleType:
    return importlib.import_module(f"batchnorm.{name}")


@contextlib.contextmanager
def gpu_kernels_everywhere(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`batch_norm` takes the GPU's kernels for tensors of the CPU, whoever looks on.

    Yields the module `gpu` of the backend. There is no option for this: the package's functions are
    replaced.
    """
    import torch

    backend, gpu = module("backends.torch"), module("backends.torch.gpu")
    derivatives = module("backends.torch.derivatives")
    patch.setattr(backend, "kernels_for", lambda x: backend.why_not(x) or backend.ON_GPU)
    patch.setattr(derivatives, "kernels", gpu.kernels)
    patch.setattr(derivatives, "kernels_remember", gpu.remember)
    with torch.library._scoped_library("batchnorm", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this overrides the CPU's kernels
            for name, run in gpu.kernels.items():
                library.impl(name, run, "CPU", allow_override=True)
        yield gpu


def small_tiles(patch: pytest.MonkeyPatch) -> None:
    """Several programs, splits, chunks and tiles of a few numbers, with a tail in each."""
    layout = module("_native.triton.layout")
    for name in ("BY_COLUMNS", "BY_ROWS"):
        patch.setattr(layout, name, {2: 128, 4: 128, 8: 64})
    for name, value in {
        "COLUMNS": 4,
        "PROGRAMS": 6,
        "FEWEST": 1,
        "SPLITS": (2, 4),
        "MOST": 7,
    }.items():
        patch.setattr(layout, name, value)
    patch.setattr(module("backends.torch.gpu"), "CHUNK", 2)
    if importlib.util.find_spec("jax_triton") is not None:
        patch.setattr(module("backends.jax.gpu"), "CHUNK", 2)
    patch.setattr(layout, "WIDEST", 32)
    layout.layout.cache_clear()


@contextlib.contextmanager
def gpu_kernels_of_jax(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The same for JAX. Yields the names of the kernels of `ordered.py` that ran, in order.

    What jax-triton would put into a program is a call of the interpreter.
    """
    import jax

    place = module("backends.jax.place")
    calls, gpu = module("backends.jax.calls"), module("backends.jax.gpu")
    names: list[str] = []

    def triton_call(*operands: Any, **how: Any) -> Any:
        return _by_interpreter(names, *operands, **how)

    patch.setattr(gpu, "triton_call", triton_call)
    patch.setattr(calls, "on", lambda platform: gpu)
    patch.setattr(place, "load_operators", lambda framework: None)
    jax.clear_caches()
    module("backends.jax.sharding")._partitioned.cache_clear()
    yield names
    jax.clear_caches()
    module("backends.jax.sharding")._partitioned.cache_clear()


def _by_interpreter(
    names: list[str], *operands: Any, kernel: Any, out_shape: Any, grid: Any, num_warps: int,
    **constants: Any,
) -> Any:  # fmt: skip
    """`jax_triton.triton_call` for the interpreter: arrays become tensors that share nothing."""
    import jax
    import numpy as np
    import torch

    kinds = (jax.Array, np.ndarray)
    arrays = [one for one in operands if isinstance(one, kinds)]

    def tensor(array: Any) -> torch.Tensor:
        array = np.array(array)
        if str(array.dtype) == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def array(one: torch.Tensor, like: Any) -> Any:
        if one.dtype is torch.bfloat16:
            return one.view(torch.int16).numpy().view(like.dtype)
        return one.numpy()

    def run(*arrays: Any) -> list[Any]:
        with ONE_AT_A_TIME:
            return launch(*arrays)

    def launch(*arrays: Any) -> list[Any]:
        names.append(kernel.fn.__name__)
        given = iter(arrays)
        placed = [tensor(next(given)) if isinstance(one, kinds) else one for one in operands]
        results = [
            torch.empty(one.shape, dtype=getattr(torch, str(one.dtype))) for one in out_shape
        ]
        kernel[grid](*placed, *results, **constants)
        return [array(one, like) for one, like in zip(results, out_shape, strict=True)]

    return jax.pure_callback(run, out_shape, *arrays, vmap_method="sequential")
