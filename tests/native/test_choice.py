"""Which path runs, and what is said where the kernels cannot."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from batchnorm._native import library
from batchnorm.backends import loading, why_not

X = np.random.default_rng(0).normal(1.0, 2.0, (6, 4, 3)).astype("float32")
MISSING = (
    "The native kernels were not built (libbatchnorm_kernels.so is missing): building them failed, "
    "or was not asked for. `pip install -v --force-reinstall batchnorm` shows which."
)
NEVER = "The environment variable BATCHNORM_KERNELS is never."
XLA = "XLA (jit_compile=True) cannot hold the native kernels."
NAMES = ("tensorflow", "jax", "torch")


def normalized(engine: engines.Engine, x: Any, fused: bool | None = None) -> Any:
    parameters, state = batchnorm.init(x)
    return batchnorm.batch_norm(x, parameters, state, training=True, fused=fused)[0]


# why_not


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_are_here(name: str) -> None:
    assert why_not(name) is None
    assert why_not(engines.ENGINES[name].tensor(X)) is None


def test_why_not_refuses_other_names() -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        why_not("numpy")
    assert str(caught.value) == (
        "why_not: subject must be tensorflow, jax, torch or one of their tensors; got 'numpy'."
    )


def test_why_not_refuses_what_is_no_tensor() -> None:
    pytest.importorskip("torch")
    with pytest.raises(TypeError) as caught:
        why_not(X)
    assert str(caught.value) == (
        "batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got numpy.ndarray. Convert it "
        "first, for example with tensorflow.convert_to_tensor, jax.numpy.asarray or "
        "torch.as_tensor."
    )


def test_a_torch_tensor_elsewhere_takes_the_composite_path() -> None:
    import torch

    x = torch.empty(6, 3, device="meta")
    reason = "The native kernels run on the CPU and on NVIDIA GPUs; the input is on meta."
    assert why_not(x) == reason
    assert normalized(engines.ENGINES["torch"], x).device.type == "meta"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        normalized(engines.ENGINES["torch"], x, fused=True)
    message = f"batch_norm: fused must be None or False here; got True. {reason}"
    assert str(caught.value) == message


# BATCHNORM_KERNELS


@pytest.mark.parametrize("value", [None, "auto", "never", "require"])
def test_the_modes(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHNORM_KERNELS", raising=False)
    if value is not None:
        monkeypatch.setenv("BATCHNORM_KERNELS", value)
    assert library.mode() == (value or "auto")


@pytest.mark.parametrize("value", ["", "Never", "1"])
def test_another_mode_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_KERNELS", value)
    for call in (library.mode, library.load.__wrapped__):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
            call()
        assert str(caught.value) == (
            "batchnorm: the environment variable BATCHNORM_KERNELS must be one of auto, never, "
            f"require; got {value!r}."
        )


def refusal(monkeypatch: pytest.MonkeyPatch, mode: str = "auto") -> str:
    monkeypatch.setenv("BATCHNORM_KERNELS", mode)
    with pytest.raises(library.KernelsUnavailable) as caught:
        library.load.__wrapped__()
    return str(caught.value)


def test_never_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, "never") == NEVER


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert refusal(monkeypatch) == MISSING


def test_no_compiler_is_another_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """kernels/CMakeLists.txt installs the file instead of the libraries."""
    (tmp_path / "no_compiler.txt").touch()
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert refusal(monkeypatch) == (
        "The native kernels were not built: there was no C++ compiler when batchnorm was "
        "installed. Install it again with one at hand."
    )


def test_a_broken_library_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libbatchnorm_kernels.so").write_text("not a library")
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert refusal(monkeypatch).startswith("The native kernels cannot be loaded: ")


def test_another_abi_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library.load().bn_abi_version()
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    assert refusal(monkeypatch) == (
        f"The native kernels are of ABI version {found}, this package needs 999: install batchnorm "
        "again."
    )


@pytest.fixture
def unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")

    def refuse(name: str) -> None:
        raise library.KernelsUnavailable("They are not here.")

    monkeypatch.setattr(loading.importlib, "import_module", refuse)
    monkeypatch.setattr(loading, "missing", loading.missing.__wrapped__)


@pytest.mark.parametrize(("mode", "said"), [("auto", 1), ("never", 0)])
def test_one_sentence_says_that_there_are_none(
    mode: str, said: int, unavailable: None, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setenv("BATCHNORM_KERNELS", mode)
    with caplog.at_level(logging.INFO, "batchnorm"):
        assert loading.load_operators.__wrapped__("torch") == "They are not here."
    sentence = (
        "batchnorm runs on torch without its native kernels, which is slower. They are not here."
    )
    assert caplog.messages == [sentence] * said


def test_require_insists(unavailable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNORM_KERNELS", "require")
    with pytest.raises(RuntimeError) as caught:
        loading.load_operators.__wrapped__("torch")
    assert str(caught.value) == (
        "batchnorm: BATCHNORM_KERNELS is require, and torch has no native kernels. They are not "
        "here."
    )


WITHOUT = """
import logging, numpy as np
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger("batchnorm").addHandler(Keep())
import batchnorm, engines
print(batchnorm.__file__)
x = np.random.default_rng(0).normal(1.0, 2.0, (6, 4, 3)).astype("float32")
for name in ("torch", "jax", "tensorflow"):
    engine = engines.ENGINES[name]
    tensor = engine.tensor(x)
    parameters, state = batchnorm.init(tensor)
    for _ in range(2):
        y, _ = batchnorm.batch_norm(tensor, parameters, state, training=True)
    expected = (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-3)
    np.testing.assert_allclose(engine.numpy(y), expected, atol=1e-5)
    print("why", batchnorm.why_not(name))
    try:
        batchnorm.batch_norm(tensor, parameters, state, fused=True)
    except ValueError as error:
        print("fused", error)
for line in lines: print("log", line)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """This package without its libraries."""
    pytest.importorskip("torch")
    built = shutil.ignore_patterns("*.so", "*.dylib", "*.dll", "__pycache__")
    copy = tmp_path / "batchnorm"
    shutil.copytree(Path(batchnorm.__file__).parent, copy, ignore=built)
    return copy


def test_without_kernels_everything_works(python: Callable[..., str], package: Path) -> None:
    refused = "fused batch_norm: fused must be None or False here; got True."
    assert python(WITHOUT, package=package).splitlines() == [
        str(package / "__init__.py"),
        *[f"why {MISSING}", f"{refused} {MISSING}"] * 3,
        *(
            f"log batchnorm runs on {name} without its native kernels, which is slower. {MISSING}"
            for name in ("torch", "jax", "tensorflow")
        ),
    ]
    assert (
        python(WITHOUT, BATCHNORM_KERNELS="never").splitlines()[1:]
        == [
            f"why {NEVER}",
            f"{refused} {NEVER}",
        ]
        * 3
    )


ELSEWHERE = """
import logging, torch, batchnorm
class Keep(logging.Handler):
    def emit(self, record): print(record.getMessage())
logging.getLogger("batchnorm").addHandler(Keep())

def call(device):
    x = torch.arange(12.0, device=device).reshape(6, 2)
    return batchnorm.batch_norm(x, *batchnorm.init(x), training=True)[0]

print(call("meta").shape)
try:
    compiled = torch.compile(lambda: call("cpu"), fullgraph=True, backend="eager")
    print(compiled().shape)
    print(call("cpu").shape)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_only_a_tensor_on_the_cpu_misses_the_library_for_it(
    python: Callable[..., str], package: Path
) -> None:
    """Whose tensors are all on a GPU is not told of it, nor stopped by `require`."""
    there, here = "torch.Size([6, 2])", f"which is slower. {MISSING}"
    assert python(ELSEWHERE, package=package).splitlines() == [
        there, f"batchnorm runs on torch without its native kernels, {here}", there, there
    ]  # fmt: skip
    refused = "BATCHNORM_KERNELS is require, and torch has no native kernels."
    first, *rest = python(ELSEWHERE, package=package, BATCHNORM_KERNELS="require").splitlines()
    assert first == there
    assert rest == [f"RuntimeError: batchnorm: {refused} {MISSING}"]
