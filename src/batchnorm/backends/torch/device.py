"""Whether the kernels run on a GPU: asked once for each device and type, and compared there."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from batchnorm._native.library import mode

OLDEST = (8, 0)  # compute capability: what the kernels are compiled and checked for
NEVER = "The environment variable BATCHNORM_KERNELS is never."
CAPTURING = "A CUDA graph is captured, and the kernels were not compared yet: call once before."
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_answers: dict[tuple[int, torch.dtype], str | None] = {}


def why_not(x: torch.Tensor) -> str | None:
    """Why the kernels do not run where x is, which is not the CPU; None where they do.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and they do not run on this GPU.
    """
    device = x.device
    if device.type != "cuda":
        return f"The native kernels run on the CPU and on NVIDIA GPUs; the input is on {device}."
    if x.dtype not in TYPES:
        return None  # the plan says which it may be
    return _answer(device.index or 0, x.dtype)


def _answer(number: int, dtype: torch.dtype) -> str | None:
    key = (number, dtype)
    if key not in _answers:
        reason = lacking(number)
        if reason is None and capturing():
            return CAPTURING
        _answers[key] = _said(number, reason or _distrust(torch.device("cuda", number), dtype))
    return _answers[key]


# It must happen while a graph is compiled, not in it: what torch.compiler.assume_constant_result
# says of it, and imports the compiler to say.
_answer._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _said(number: int, reason: str | None) -> str | None:
    """The reason, which the user is told of."""
    if reason is not None and mode() == "require":
        raise RuntimeError(
            f"batchnorm: BATCHNORM_KERNELS is require, and cuda:{number} has no native kernels. "
            f"{reason}"
        )
    if reason is not None and mode() == "auto":
        logging.getLogger("batchnorm").warning(
            "batchnorm runs on cuda:%d without its native kernels, which is slower. %s",
            number,
            reason,
        )
    return reason


def lacking(number: int) -> str | None:
    """What a device lacks for the kernels, in a sentence."""
    if mode() == "never":
        return NEVER
    if torch.version.hip is not None:
        return "The GPU kernels are for NVIDIA, and this PyTorch is for AMD."
    found = capability(number)
    if found < OLDEST:
        return (
            f"The GPU kernels need compute capability {OLDEST[0]}.{OLDEST[1]}; "
            f"cuda:{number} has {found[0]}.{found[1]}."
        )
    if importlib.util.find_spec("triton") is None:
        return "The GPU kernels need Triton, which is not installed: pip install 'batchnorm[gpu]'."
    return None


def capability(number: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(number)


def capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be compared."""
    return torch.cuda.is_current_stream_capturing()


def _distrust(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not trusted there: they differ from array operations, or do not run."""
    # whatever the first call is in the middle of: a transformation, a tracer, a level of tangents
    with torch.no_grad(), torch._C._DisableFuncTorch(), _disable_current_modes():
        try:
            found = compare(device, dtype)
        except torch.OutOfMemoryError:
            raise  # it says nothing of the kernels, and the next call asks again
        except Exception as error:  # of Triton, its compiler, a driver: whatever it is, say it
            lines = str(error).strip().splitlines() or ["no message"]
            return f"A GPU kernel does not run here: {type(error).__name__}: {lines[0]}"
    if found is None:
        return None
    return f"A GPU kernel gave wrong numbers at its first use: {found}."


def compare(device: torch.device, dtype: torch.dtype) -> str | None:
    """What `trust.mismatch` says of the kernels."""
    from batchnorm.backends.torch import gpu, trust

    kernels: Any = gpu.kernels
    return trust.mismatch(kernels, device, dtype)
