"""A binding that meets a release it does not know says so, and the composite path runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batchnorm.backends.loading import unknown
from conftest import REQUESTED

RUN = (
    "x = {tensor}\n"
    "parameters, state = batchnorm.init(x)\n"
    "y, state = batchnorm.batch_norm(x, parameters, state, training=True)\n"
    "print(batchnorm.why_not('{name}'))\nprint(float(y[0, 0]), float(state['moving_mean'][0]))"
)
TENSORS = {
    "jax": "jax.numpy.asarray([[1.0], [3.0]])",
    "tensorflow": "tensorflow.constant([[1.0], [3.0]])",
    "torch": "torch.tensor([[1.0], [3.0]])",
}
Y, MEAN = -1 / (1 + 1e-3) ** 0.5, 0.02


def program(name: str, before: str) -> str:
    if name not in REQUESTED:
        pytest.skip(f"BATCHNORM_TEST_BACKENDS does not request {name}")
    return f"import {name}\n{before}\nimport batchnorm\n" + RUN.format(
        tensor=TENSORS[name], name=name
    )


@pytest.mark.parametrize(
    ("name", "version", "known"),
    [
        ("jax", "0.9.2", "from 0.10 to below 1.0"),
        ("tensorflow", "3.0.0-rc1", "from 2.20 to below 3.0"),
        ("torch", "2.12.1+cu126", "from 2.13 to below 3.0"),
    ],
)
def test_an_unknown_release_is_named_and_runs_without_kernels(
    python: Callable[..., str], name: str, version: str, known: str
) -> None:
    code = program(name, f"{name}.__version__ = {version!r}")
    reason, numbers = python(code).splitlines()
    assert reason == (
        f"The kernels' binding knows {name} {known}; got {version}. Install one of these, or a "
        "batchnorm that knows it."
    )
    assert [float(one) for one in numbers.split()] == pytest.approx([Y, MEAN], rel=1e-6)


def test_another_ffi_is_named_and_runs_without_kernels(
    python: Callable[..., str], tmp_path: Path
) -> None:
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 1\n")
    code = program("jax", f"jax.ffi.include_dir = lambda: {str(tmp_path)!r}")
    reason, numbers = python(code).splitlines()
    assert reason.startswith("The kernels' binding knows version 0 of XLA's FFI; got 1 in jax 0.")
    assert [float(one) for one in numbers.split()] == pytest.approx([Y, MEAN], rel=1e-6)


@pytest.mark.parametrize("name", REQUESTED)
def test_the_installed_release_is_known(name: str) -> None:
    assert name in sys.modules
    assert unknown(name) is None
