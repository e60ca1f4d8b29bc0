"""Whether the kernels run on a GPU: asked once for each type, and compared there."""

from __future__ import annotations

from typing import Any

import jax

from batchnorm.backends import gpus
from batchnorm.backends.loading import said

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
    if dtype not in _answers:
        _answers[dtype] = _answer(dtype)
    return _answers[dtype]


def _answer(dtype: str) -> str | None:
    device, *others = _devices()
    if device.platform != "gpu" or "rocm" in device.client.platform_version:
        return f"The native kernels run on the CPU and on NVIDIA GPUs; JAX runs on {device}."
    for one in (device, *others):
        if reason := _reason(one, dtype):
            return said(str(one), reason)
    return None


def _devices() -> list[Any]:
    """One of each kind, the default one first: a program may go to any."""
    kinds: dict[str, Any] = {}
    for one in jax.local_devices():
        kinds.setdefault(one.device_kind, one)
    return list(kinds.values())


def _reason(device: Any, dtype: str) -> str | None:
    return gpus.lacking(str(device), lambda: capability(device), MODULES) or gpus.distrust(
        lambda: compare(device, dtype), out_of_memory
    )


def capability(device: Any) -> tuple[int, int]:
    major, minor = str(device.compute_capability).split(".")
    return int(major), int(minor)


def out_of_memory(error: Exception) -> bool:
    """XLA's errors are of one type, and begin with what they are."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def compare(device: Any, dtype: str) -> str | None:
    """What `trust.mismatch` says of the kernels; outside of whatever is being traced."""
    from batchnorm.backends import trust
    from batchnorm.backends.jax import trusted

    with jax.ensure_compile_time_eval(), jax.default_device(device):
        return trust.mismatch(trusted.where(dtype))
