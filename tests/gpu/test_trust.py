"""The kernels are compared at their first use; what is wrong, missing or forbidden is said."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import interpreted

interpreted.skip_without_triton()

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import batchnorm

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that decides, with a GPU that is like an H100 and kernels that run on the CPU."""
    module = interpreted.module("backends.torch.device")
    trust = interpreted.module("backends.trust")
    kernels = interpreted.module("backends.torch.gpu").kernels
    monkeypatch.setenv("BATCHNORM_KERNELS", "auto")
    monkeypatch.setattr(module, "_answers", {})
    monkeypatch.setattr(module, "capability", lambda number: (9, 0))
    monkeypatch.setattr(module, "capturing", lambda: False)
    monkeypatch.setattr(
        module,
        "compare",
        lambda device, dtype: trust.mismatch(module.where(kernels, CPU, dtype)),
    )
    return module


class OnGpu:
    """What is asked of a tensor on a GPU."""

    is_cpu = False
    device = torch.device("cuda", 1)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype


@pytest.mark.parametrize("dtype", TYPES)
def test_right_kernels_are_trusted(device: Any, dtype: torch.dtype) -> None:
    assert device.why_not(OnGpu(dtype)) is None


def during_vmap(asked: Any) -> None:
    torch.func.vmap(lambda x: asked() or x)(torch.ones(2, 3))


def during_grad(asked: Any) -> None:
    torch.func.grad(lambda x: asked() or x.sum())(torch.ones(3))


def during_tangents(asked: Any) -> None:
    torch.func.jvp(lambda x: asked() or 2 * x, (torch.ones(3),), (torch.ones(3),))


def during_tracing(asked: Any) -> None:
    make_fx(lambda x: asked() or x + 1)(torch.ones(3))


def without_memory(asked: Any) -> None:
    with FakeTensorMode():
        asked()


def with_other_defaults(asked: Any) -> None:
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        asked()


# torch's own rules for derivatives (2.13) are scripts
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "during",
    [
        during_vmap, during_grad, during_tangents, during_tracing, without_memory,
        with_other_defaults,
    ],
)  # fmt: skip
def test_the_first_call_may_be_anywhere(device: Any, during: Any, monkeypatch: Any) -> None:
    """The comparison is about the device, not about what someone does with it just then."""
    trust = interpreted.module("backends.trust")
    monkeypatch.setattr(trust, "BY_ROWS", (3, 1, 1, 3, 70))
    monkeypatch.setattr(trust, "BY_COLUMNS", (2, 3, 20, 5, 1))
    answers: list[str | None] = []
    during(lambda: answers.append(device.why_not(OnGpu())))
    assert answers == [None]


def test_it_is_asked_once(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(device, "compare", lambda *which: asked.append(which))
    for dtype in (torch.float32, torch.float32, torch.float16, torch.float32):
        assert device.why_not(OnGpu(dtype)) is None
    assert asked == [(OnGpu.device, torch.float32), (OnGpu.device, torch.float16)]


WRONG = {  # which operator is broken how, and the kernel that is named
    "moments": ("forward", 3, "moments"),
    "count": ("moments", 3, "moments"),
    "y": ("forward", 0, "standardize"),
    "y with a residual": ("standardize_add", None, "standardize"),
    "sum_dy": ("backward", 1, "backward_sums"),
    "sum_dy_xh": ("backward_sums", 1, "backward_sums"),
    "dx": ("backward", 0, "backward_input"),
    "dx of given sums": ("backward_input", None, "backward_input"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", list(WRONG))
def test_a_wrong_kernel_is_found(device: Any, what: str, monkeypatch: Any) -> None:
    trust = interpreted.module("backends.trust")
    monkeypatch.setattr(trust, "BY_ROWS", (3, 1, 1, 3, 70))
    monkeypatch.setattr(trust, "BY_COLUMNS", (2, 3, 20, 5, 1))
    kernels = interpreted.module("backends.torch.gpu").kernels
    operator, result, named = WRONG[what]
    right = kernels[operator]

    def wrong(*operands: Any) -> Any:
        found = right(*operands)
        one = found if result is None else found[result]
        one.view(-1)[-1] += 0.01 * one.abs().max()
        return found

    found = trust.mismatch(device.where({**kernels, operator: wrong}, CPU, torch.float32))
    assert found is not None
    assert found.startswith(f"{named} is off by ")
    assert found.endswith(" of the largest value in float32")
    assert trust.mismatch(device.where(kernels, CPU, torch.float32)) is None


def test_nan_is_wrong(device: Any) -> None:
    trust = interpreted.module("backends.trust")
    kernels = interpreted.module("backends.torch.gpu").kernels

    def wrong(*operands: Any) -> Any:
        y, *rest = kernels["forward"](*operands)
        return y * torch.nan, *rest

    assert trust.mismatch(device.where({**kernels, "forward": wrong}, CPU, torch.float32)) == (
        "standardize is off by nan of the largest value in float32"
    )


def test_what_is_not_trusted_is_said_and_everything_works(
    device: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tensors of the CPU stand for those of a GPU here: its kernels are not asked for."""
    monkeypatch.setattr(device, "compare", lambda *which: "standardize is off by 1e-02")
    reason = "A GPU kernel gave wrong numbers at its first use: standardize is off by 1e-02."
    backend = interpreted.module("backends.torch")
    monkeypatch.setattr(
        backend, "kernels_for", lambda x: device.why_not(OnGpu(x.dtype)) or backend.ON_GPU
    )
    x = torch.arange(12.0).reshape(4, 3)
    with caplog.at_level(logging.WARNING, "batchnorm"):
        for _ in range(2):
            y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), training=True)
    torch.testing.assert_close(y, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-3).sqrt())
    assert device.why_not(OnGpu()) == reason
    assert [one.getMessage() for one in caplog.records] == [
        f"batchnorm runs on cuda:1 without its native kernels, which is slower. {reason}"
    ]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        batchnorm.batch_norm(x, *batchnorm.init(x), training=True, fused=True)
    message = f"batch_norm: fused must be None or False here; got True. {reason}"
    assert str(caught.value) == message


def test_a_kernel_that_does_not_run_is_a_reason(device: Any, monkeypatch: Any) -> None:
    def fails(*which: Any) -> None:
        raise RuntimeError("ptxas: no such file\nand more")

    monkeypatch.setattr(device, "compare", fails)
    assert device.why_not(OnGpu()) == (
        "A GPU kernel does not run here: RuntimeError: ptxas: no such file"
    )


def test_no_memory_says_nothing_of_the_kernels(device: Any, monkeypatch: Any) -> None:
    def fails(*which: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(device, "compare", fails)
        with pytest.raises(torch.OutOfMemoryError):
            device.why_not(OnGpu())
    monkeypatch.setattr(device, "compare", lambda *which: None)
    assert device.why_not(OnGpu()) is None


LACKING = {
    "old": "The GPU kernels need compute capability 8.0; cuda:1 has 7.5.",
    "never": "The environment variable BATCHNORM_KERNELS is never.",
    "triton": "The GPU kernels need Triton, which is not installed: pip install 'batchnorm[gpu]'.",
    "amd": "The GPU kernels are for NVIDIA, and this PyTorch is for AMD.",
}


@pytest.mark.parametrize("what", list(LACKING))
def test_what_is_lacking_is_said(device: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "old":
        monkeypatch.setattr(device, "capability", lambda number: (7, 5))
    elif what == "never":
        monkeypatch.setenv("BATCHNORM_KERNELS", "never")
    elif what == "amd":
        monkeypatch.setattr(torch.version, "hip", "6.2")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert device.why_not(OnGpu()) == LACKING[what]


def test_require_raises_at_every_call(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_KERNELS", "require")
    monkeypatch.setattr(device, "capability", lambda number: (7, 5))
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            device.why_not(OnGpu())
        assert str(caught.value) == (
            "batchnorm: BATCHNORM_KERNELS is require, and cuda:1 has no native kernels. "
            f"{LACKING['old']}"
        )


def test_a_graph_that_is_captured_waits_for_the_comparison(device: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(device, "capturing", lambda: True)
    assert device.why_not(OnGpu()) == (
        "A CUDA graph is captured, and the kernels were not compared yet: call once before."
    )
    monkeypatch.setattr(device, "capturing", lambda: False)
    assert device.why_not(OnGpu()) is None


def test_other_devices_are_named() -> None:
    x = torch.empty(3, device="meta")
    assert batchnorm.why_not(x) == (
        "The native kernels run on the CPU and on NVIDIA GPUs; the input is on meta."
    )
