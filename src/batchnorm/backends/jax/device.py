"""Whether the kernels run on a GPU: asked once for each type, and compared there."""

from __future__ import annotations

from typing import Any

import jax

from batchnorm.backends import gpus

TYPES = ("float32", "float64", "float16", "bfloat16")
MODULES = {
    "triton": ("Triton", "batchnorm[gpu]"),
    "jax_triton": ("jax-triton", "batchnorm[gpu-jax]"),
}

_answers: dict[str, str | None] = {}


def why_not(dtype: str) -> str | None:
    """Why the kernels do not run where JAX's default device is, which is not the CPU.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and they do not run on this GPU.
    """
    if dtype not in TYPES:
        return None  # the plan says which it may be
    device = _device()
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return f"The native kernels run on the CPU and on NVIDIA GPUs; JAX runs on {device}."
    if dtype not in _answers:
        _answers[dtype] = gpus.said(
            str(device),
            gpus.lacking(str(device), capability, MODULES) or gpus.distrust(lambda: compare(dtype)),
        )
    return _answers[dtype]


def _device() -> Any:
    return jax.local_devices()[0]


def capability() -> tuple[int, int]:
    major, minor = str(_device().compute_capability).split(".")
    return int(major), int(minor)


def compare(dtype: str) -> str | None:
    """What `trust.mismatch` says of the kernels; outside of whatever is being traced."""
    from batchnorm.backends import trust
    from batchnorm.backends.jax import trusted

    with jax.ensure_compile_time_eval():
        return trust.mismatch(trusted.where(dtype))
