"""What tests of the GPU kernels share; see `tests/interpreted.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import engines
import interpreted


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that launches, and every call of `batch_norm` through it."""
    with interpreted.gpu_kernels_everywhere(monkeypatch) as module:
        yield module


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of a few numbers, so that a small x is many of them."""
    interpreted.small_tiles(monkeypatch)
    yield
    interpreted.module("_native.triton.layout").layout.cache_clear()


@pytest.fixture
def torch_engine() -> engines.Engine:
    return engines.ENGINES["torch"]


@pytest.fixture
def launched(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched, in order."""
    names: list[str] = []
    real = gpu.launch

    def launch(kernel: Any, *operands: Any, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        real(kernel, *operands, **constants)

    monkeypatch.setattr(gpu, "launch", launch)
    return names
