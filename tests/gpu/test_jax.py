"""The GPU kernels under JAX: by Triton's interpreter, and in the programs that a GPU would get."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import interpreted

interpreted.skip_without_triton("jax_triton")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchnorm
import engines
from batchnorm._native.triton.layout import REGISTERS
from gpu_calls import CASES, check, check_sizes

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, (6, 5, 7)).astype("float32")
DIRECTION = RNG.normal(size=X.shape).astype("float32")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with interpreted.gpu_kernels_of_jax(monkeypatch) as names:
        yield names


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("mode", "layout", "dtype"), CASES)
def test_the_kernels_give_the_reference(
    launched: list[str], mode: str, layout: str, dtype: str
) -> None:
    check(engines.ENGINES["jax"], mode, layout, dtype)
    # what infers under jit may leave the process: JAX's own operations
    assert bool(launched) == (mode != "inference")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (2, 0, 3), (4, 0), (257, 3), (40, 33)])
def test_sizes_that_are_odd_one_or_none(launched: list[str], shape: Any) -> None:
    check_sizes(engines.ENGINES["jax"], shape, -1)
    assert np.prod(shape) or set(launched) <= {"remembered"}


def normalized(x: Any, gamma: Any = None, residual: Any = None, **options: Any) -> Any:
    parameters, state = batchnorm.init(x, axis=1)
    if gamma is not None:
        parameters = {**parameters, "gamma": gamma}
    return batchnorm.batch_norm(
        x, parameters, state, training=True, axis=1, residual=residual, **options
    )


def test_a_step_is_two_launches_each_way_and_one_that_remembers(launched: list[str]) -> None:
    @jax.jit
    def step(x: Any) -> Any:
        return jax.value_and_grad(
            lambda x: (lambda y, state: (jnp.sum(y * DIRECTION), state))(*normalized(x)),
            has_aux=True,
        )(x)

    jax.block_until_ready(step(X))
    assert sorted(launched) == sorted(
        ["partial_moments", "standardize_merging", "partial_sums", "backward_merging", "remembered"]
    )


@pytest.mark.parametrize("activation", [None, "relu"])
def test_derivatives_are_those_of_the_composite_path(
    launched: list[str], activation: str | None
) -> None:
    """Forward, reverse, mapped, and with a residual."""
    gamma = np.linspace(0.5, 1.5, 5).astype("float32")

    def y(x: Any, gamma: Any, residual: Any, fused: bool | None) -> Any:
        return normalized(x, gamma, residual, activation=activation, fused=fused)[0]

    def all_of(fused: bool | None) -> list[Any]:
        def of(x: Any) -> Any:
            return y(x, gamma, DIRECTION, fused)

        out, change = jax.jvp(of, (X,), (DIRECTION,))
        slopes = jax.grad(lambda *given: jnp.sum(jnp.sin(y(*given, fused))), (0, 1, 2))(
            jnp.asarray(X), jnp.asarray(gamma), jnp.asarray(DIRECTION)
        )
        mapped = jax.vmap(of)(np.stack([X, 2 * X]))
        second = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(of(x) ** 2))(x) ** 2))(X)
        return [out, change, *slopes, mapped, second]

    for got, wanted in zip(all_of(None), all_of(False), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max())
    assert {"partial_moments", "standardize_merging", "backward_merging"} <= set(launched)


class Device:
    """What is asked of a GPU."""

    platform = "gpu"
    compute_capability = "9.0"
    device_kind = "H100"

    class client:
        platform_version = "cuda 12090"

    def __str__(self) -> str:
        return "cuda:0"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that decides, with a GPU that is like an H100."""
    found = interpreted.module("backends.jax.device")
    trust = interpreted.module("backends.trust")
    monkeypatch.setenv("BATCHNORM_KERNELS", "auto")
    monkeypatch.setattr(found, "_answers", {})
    monkeypatch.setattr(found.jax, "local_devices", lambda: [Device(), Device()])
    monkeypatch.setattr(found.jax, "default_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(trust, "BY_ROWS", (3, 1, 1, 3, 70))
    monkeypatch.setattr(trust, "BY_COLUMNS", (2, 3, 20, 5, 1))
    return found


@pytest.mark.usefixtures("launched", "small")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_right_kernels_are_trusted(device: Any, dtype: str) -> None:
    assert device.why_not(dtype) is None


@pytest.mark.usefixtures("launched", "small")
@pytest.mark.parametrize(
    ("kernel", "named"),
    [("merge", "moments"), ("standardize_given", "standardize"), ("merge_sums", "backward_sums"),
     ("backward_merging", "backward_input"), ("backward_given", "backward_input")],
)  # fmt: skip
def test_a_wrong_kernel_is_found(
    device: Any, kernel: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = interpreted.module("backends.jax.gpu")
    right = gpu.triton_call

    def wrong(*operands: Any, **how: Any) -> Any:
        found = right(*operands, **how)
        if how["kernel"].fn.__name__ == kernel:
            found[0] = found[0] + jnp.asarray(0.05, found[0].dtype) * jnp.max(jnp.abs(found[0]))
        return found

    monkeypatch.setattr(gpu, "triton_call", wrong)
    said = jax.jit(lambda x: x + len(device.why_not("float32") or ""))(0)  # within a trace too
    assert said
    assert device.why_not("float32").startswith(
        f"A GPU kernel gave wrong numbers at its first use: {named} is off by "
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"compute_capability": "7.5"},
         "The GPU kernels need compute capability 8.0; cuda:0 has 7.5."),
        ({"platform": "tpu"},
         "The native kernels run on the CPU and on NVIDIA GPUs; JAX runs on cuda:0."),
    ],
    ids=str,
)  # fmt: skip
def test_a_reason_is_said(device: Any, change: Any, reason: str, monkeypatch: Any) -> None:
    for name, value in change.items():
        monkeypatch.setattr(Device, name, value)
    assert device.why_not("float32") == reason


@pytest.mark.parametrize(
    ("missing", "words"),
    [("triton", "Triton, which is not installed: pip install 'batchnorm[gpu]'."),
     ("jax_triton", "jax-triton, which is not installed: pip install 'batchnorm[gpu-jax]'.")],
)  # fmt: skip
def test_what_is_missing_is_said(device: Any, missing: str, words: str, monkeypatch: Any) -> None:
    gpus = interpreted.module("backends.gpus")
    real = gpus.importlib.util.find_spec
    monkeypatch.setattr(
        gpus.importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )
    assert device.why_not("float32") == f"The GPU kernels need {words}"
    monkeypatch.setattr(device, "_answers", {})
    monkeypatch.setenv("BATCHNORM_KERNELS", "require")
    with pytest.raises(RuntimeError, match="BATCHNORM_KERNELS is require, and cuda:0 has no"):
        device.why_not("float32")


def _worker(name: str, *arguments: str, **more: str) -> Any:
    """What a worker printed, in a process of its own, where the interpreter is off unless asked."""
    worker = Path(__file__).parents[1] / "workers" / name
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    source = str(Path(interpreted.module("_native").__file__ or "").parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([source, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(worker), *arguments],
        env=environment | more, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_kind_of_device_is_asked(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(Device):
        device_kind, compute_capability = "V100", "7.0"

        def __str__(self) -> str:
            return "cuda:1"

    asked = []
    monkeypatch.setattr(device, "compare", lambda one, dtype: asked.append(str(one)))
    assert device.why_not("float32") is None
    monkeypatch.setattr(device.jax, "local_devices", lambda: [Device(), Older(), Device()])
    wanted = "The GPU kernels need compute capability 8.0; cuda:1 has 7.0."
    assert device.why_not("float16") == wanted
    assert asked == ["cuda:0", "cuda:0"]


def test_out_of_memory_says_nothing_of_the_kernels(device: Any, monkeypatch: Any) -> None:
    def full(one: Any, dtype: str) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def broken(one: Any, dtype: str) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: no kernel image")

    monkeypatch.setattr(device, "compare", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        device.why_not("float32")
    monkeypatch.setattr(device, "compare", lambda one, dtype: None)
    assert device.why_not("float32") is None
    monkeypatch.setattr(device, "compare", broken)
    assert device.why_not("float16") == (
        "A GPU kernel does not run here: JaxRuntimeError: INTERNAL: no kernel image"
    )


def test_the_library_for_the_cpu_is_not_asked_for_on_a_gpu(device: Any, monkeypatch: Any) -> None:
    place = interpreted.module("backends.jax.place")

    def refuse(framework: str) -> None:
        raise AssertionError

    monkeypatch.setattr(place, "load_operators", refuse)
    monkeypatch.setattr(device, "compare", lambda one, dtype: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert place.why_not(X) is None
    assert batchnorm.why_not("jax") is None


@pytest.mark.parametrize(("mode", "layout", "dtype"), CASES)
def test_where_only_the_gpu_has_kernels_the_cpu_has_array_operations(
    mode: str, layout: str, dtype: str, monkeypatch: Any
) -> None:
    with interpreted.gpu_kernels_of_jax(monkeypatch):
        calls = interpreted.module("backends.jax.calls")
        arrays = interpreted.module("backends.jax.arrays")
        monkeypatch.setattr(calls, "on", lambda platform: arrays)
        for name in ("calls", "derivatives"):
            monkeypatch.setattr(
                interpreted.module(f"backends.jax.{name}"), "missing", lambda framework: "gone"
            )
        for activation in (None, "relu"):
            check(engines.ENGINES["jax"], mode, layout, dtype, activation)


def test_arrays_add_a_residual_and_take_sums_as_they_are() -> None:
    """What the modes above do not reach."""
    trust, trusted = (interpreted.module(f"backends.{name}") for name in ("trust", "jax.trusted"))
    arrays = interpreted.module("backends.jax.arrays")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trusted, "gpu", arrays)
        assert trust.mismatch(trusted.where("float32")) is None


def test_sharded_arrays_get_the_kernels() -> None:
    assert _worker("gpu_sharded.py", TRITON_INTERPRET="1") == {
        "sharded": ["backward_input", "backward_sums", "moments", "standardize"],
        "shard_map": [
            "backward_given", "merge", "merge_sums", "partial_moments", "partial_sums",
            "standardize_given",
        ],
    }  # fmt: skip


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_programs_for_a_gpu_hold_the_kernels(capability: str) -> None:
    """jax-triton itself compiles them."""
    found = _worker("gpu_lower.py", capability)
    takes = found["takes"]
    both = ["partial_moments", "standardize_merging"]
    back = ["backward_merging", "partial_sums"]
    wanted = {
        "training": [*both, "remembered"],
        "step": [*back, *both, "remembered"],
        "tangent": [*back, *both],
        "inference": [],  # a program that leaves holds JAX's own operations
        "renorm": ["merge", "partial_moments", "standardize_given"],
        "weights": [*back, "merge", "partial_moments", "standardize_given"],
        "bfloat16": [*back, *both, "remembered"],
        "cpu": [],
    }
    assert found["programs"] == {name: sorted(one) for name, one in wanted.items()}
    assert len(takes) == 7
    assert not {name: one for name, one in takes.items() if one[0] > REGISTERS or one[1] > 0}
