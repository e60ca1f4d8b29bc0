"""Whether the kernels run on a GPU: asked once for each device and type, and compared there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from batchnorm.backends import gpus, trust
from batchnorm.backends.loading import said
from batchnorm.backends.torch import operations

CAPTURING = "A CUDA graph is captured, and the kernels were not compared yet: call once before."
MODULES = {"triton": ("Triton", "batchnorm[gpu]")}
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
        reason = reason or _distrust(torch.device("cuda", number), dtype)
        _answers[key] = said(f"cuda:{number}", reason)
    return _answers[key]


# It must happen while a graph is compiled, not in it: what torch.compiler.assume_constant_result
# says of it, and imports the compiler to say.
_answer._dynamo_marked_constant = True  # type: ignore[attr-defined]


def lacking(number: int) -> str | None:
    """What a device lacks for the kernels, in a sentence."""
    if torch.version.hip is not None:
        return "The GPU kernels are for NVIDIA, and this PyTorch is for AMD."
    return gpus.lacking(f"cuda:{number}", lambda: capability(number), MODULES)


def capability(number: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(number)


def capturing() -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be compared."""
    return torch.cuda.is_current_stream_capturing()


def _distrust(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not trusted there: they differ from array operations, or do not run."""
    # whatever the first call is in the middle of: a transformation, a tracer, a level of tangents
    with torch.no_grad(), torch._C._DisableFuncTorch(), _disable_current_modes():
        return gpus.distrust(lambda: compare(device, dtype), out_of_memory)


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)


def compare(device: torch.device, dtype: torch.dtype) -> str | None:
    """What `trust.mismatch` says of the kernels."""
    from batchnorm.backends.torch import gpu

    return trust.mismatch(where(gpu.kernels, device, dtype))


def where(kernels: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> trust.Where:
    """These kernels, on a device."""
    return trust.Where(
        operations,
        kernels,
        str(dtype).removeprefix("torch."),
        lambda values, name: torch.tensor(values, dtype=getattr(torch, name), device=device),
        lambda one: one.double().numpy(force=True),
    )
