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
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest


def skip_without_triton() -> None:
    """At the top of each file of tests: they run in the process of `make test-gpu`."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; `make test-gpu` does it", allow_module_level=True)
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
    patch.setattr(layout, "TILE", {2: 128, 4: 128, 8: 64})
    for name, value in {"COLUMNS": 4, "PROGRAMS": 6, "FEWEST": 1, "SPLITS": (2, 4)}.items():
        patch.setattr(layout, name, value)
    patch.setattr(module("backends.torch.gpu"), "CHUNK", 2)
    patch.setattr(layout, "WIDEST", 32)
    layout.layout.cache_clear()
