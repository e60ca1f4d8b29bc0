"""The seam: every framework's file defines the same functions with the same signatures."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from batchnorm import backends
from conftest import REQUESTED

NAMES = ("tensorflow", "jax", "torch")


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"batchnorm.backends.{name}") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_has_the_protocol(name: str, modules: dict[str, ModuleType]) -> None:
    assert [one for one in backends.PROTOCOL if not hasattr(modules[name], one)] == []


def test_the_protocol_is_sorted_out_once() -> None:
    assert len(set(backends.PROTOCOL)) == len(backends.PROTOCOL)


def test_equal_functions_have_equal_signatures(modules: dict[str, ModuleType]) -> None:
    for name in backends.PROTOCOL:
        ours = [
            [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values()]
            for module in modules.values()
            if inspect.isfunction(value := vars(module)[name])
            and value.__module__.startswith("batchnorm.")
        ]
        assert all(one == ours[0] for one in ours), name


@pytest.mark.parametrize("part", ["moments", "forward", "standardize", "remember"])
def test_kernels_have_equal_signatures(part: str, modules: dict[str, ModuleType]) -> None:
    found = [
        list(inspect.signature(getattr(module.derivatives, part)).parameters)
        for module in modules.values()
    ]
    assert len(found) == 3
    if part != "remember":  # by position everywhere
        assert found[0] == found[1] == found[2]


def test_a_tensor_finds_its_backend(engine: engines.Engine) -> None:
    x = engine.tensor(np.zeros((2, 3), "float32"))
    assert backends.backend_of(x) is engine.ops


def test_a_traced_tensor_finds_its_backend(engine: engines.Engine) -> None:
    found = []

    def function(x: Any) -> Any:
        found.append(backends.backend_of(x))
        return x

    if engine.name == "torch":
        pytest.skip("dynamo traces no side effects on lists of modules")
    engine.run(function, engine.tensor(np.zeros(3, "float32")), mode=engine.modes[1])
    assert set(found) == {engine.ops}


def test_a_variable_finds_its_backend() -> None:
    import tensorflow as tf
    import torch

    assert backends.backend_of(tf.Variable([1.0])) is importlib.import_module(
        "batchnorm.backends.tensorflow"
    )
    assert backends.backend_of(torch.nn.Parameter(torch.zeros(1))) is importlib.import_module(
        "batchnorm.backends.torch"
    )


@pytest.mark.parametrize(
    ("value", "kind"), [(np.zeros(3), "numpy.ndarray"), ([1.0], "builtins.list")]
)
def test_anything_else_is_refused_in_the_words_of_what_is_loaded(
    monkeypatch: pytest.MonkeyPatch, value: Any, kind: str
) -> None:
    conversions = {
        "tensorflow": "tensorflow.convert_to_tensor",
        "jax": "jax.numpy.asarray",
        "torch": "torch.as_tensor",
    }
    advice = {
        None: "tensorflow.convert_to_tensor, jax.numpy.asarray or torch.as_tensor",
        **conversions,
    }
    for name, conversion in advice.items():
        for other in conversions:
            if name is None:
                monkeypatch.setitem(sys.modules, other, sys.modules.get(other, ModuleType(other)))
            elif other != name:
                monkeypatch.delitem(sys.modules, other, raising=False)
        with pytest.raises(TypeError) as caught:
            backends._refuse(value)
        assert str(caught.value) == (
            f"batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got {kind}. Convert it "
            f"first, for example with {conversion}."
        )
        monkeypatch.undo()


def test_an_error_speaks_of_the_framework_of_the_other_arguments(engine: engines.Engine) -> None:
    x = engine.tensor(np.zeros((2, 3)), "float32")
    parameters, state = batchnorm.init(x)
    wanted = backends.CONVERSIONS[engine.name]
    for beside in ((parameters, state), ({}, state)):
        with pytest.raises(TypeError) as caught:
            batchnorm.batch_norm(np.zeros((2, 3)), *beside)
        assert str(caught.value) == (
            "batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got numpy.ndarray. Convert "
            f"it first, for example with {wanted}."
        )


@pytest.mark.parametrize("name", REQUESTED)
def test_one_framework_does_not_import_another(name: str) -> None:
    tensor = {
        "tensorflow": "import tensorflow as tf; x = tf.zeros((2, 3))",
        "jax": "import jax; x = jax.numpy.zeros((2, 3))",
        "torch": "import torch; x = torch.zeros((2, 3))",
    }[name]
    code = (
        f"{tensor}\nimport sys, batchnorm\n"
        "before = set(sys.modules)\n"
        "batchnorm.batch_norm(x, *batchnorm.init(x), training=True)\n"
        "print(sorted({'tensorflow', 'jax', 'torch', 'keras'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_small_operations_agree_with_numpy(engine: engines.Engine) -> None:
    ops = engine.ops
    x = np.array([[-1.0, 0.5, np.inf], [2.0, np.nan, 0.0]], "float32")
    tensor = engine.tensor(x)
    with np.errstate(invalid="ignore"):
        pairs = [
            (ops.maximum(tensor, 0.25), np.maximum(x, 0.25)),
            (ops.minimum(tensor, 0.25), np.minimum(x, 0.25)),
            (ops.minimum(tensor, ops.zeros_like(tensor)), np.minimum(x, 0)),
            (ops.isfinite(tensor), np.isfinite(x)),
            (ops.equal(tensor, 0.5), x == 0.5),
            (ops.sum(ops.ones_like(tensor), 0), [[2.0, 2.0, 2.0]]),
            (ops.transpose(tensor, (1, 0)), x.T),
            (ops.broadcast_to(tensor[:1], (4, 3)), np.broadcast_to(x[:1], (4, 3))),
            (ops.full((2, 1), 3, "int32", tensor), [[3], [3]]),
        ]
    for got, expected in pairs:
        np.testing.assert_array_equal(engine.numpy(got), expected)
