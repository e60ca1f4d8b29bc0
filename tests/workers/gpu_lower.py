"""Lowers programs for NVIDIA GPUs, by jax-triton, without one; prints the kernels in each, and what
each takes of a GPU.

    python gpu_lower.py 90     for this compute capability
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import jax_triton.triton_lib
import numpy as np
import triton

import batchnorm
from batchnorm.backends.jax import device, gpu

X = np.ones((8, 16, 14, 14), "float32")
CAPABILITY = int(sys.argv[1])
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Device:
    """What is asked of a GPU."""

    platform, device_kind = "gpu", "a GPU"
    compute_capability = f"{CAPABILITY // 10}.{CAPABILITY % 10}"

    class client:
        platform_version = "cuda"


names: list[str] = []


def call(*operands: Any, **how: Any) -> Any:
    """jax-triton's, which would ask the driver which GPU it is."""
    names.append(how["kernel"].__name__)
    return jax_triton.triton_call(*operands, compute_capability=CAPABILITY, **how)


compile_for = jax_triton.triton_lib.compile_ttir_inplace
takes: dict[str, list[int]] = {}  # of a kernel: most registers, bytes that are spilled


def compiled(*given: Any) -> Any:
    out = compile_for(*given)
    ptxas = TOOLS / ("ptxas-blackwell" if CAPABILITY >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(out.binary)
        target = re.search(r"\.target (sm_\w+)", out.binary)
        assert target is not None
        command = [ptxas, "-v", f"-arch={target[1]}", source, "-o", source.with_suffix(".cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    numbers = [
        max(map(int, re.findall(pattern, said)))
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    ]
    takes[out.name] = [
        max(pair) for pair in zip(numbers, takes.get(out.name, numbers), strict=True)
    ]
    return out


def kernels(function: Any, x: Any = X, platform: str = "cuda") -> list[str]:
    """The kernels in a program for a platform; each is compiled for it to be there."""
    names.clear()
    jax.clear_caches()
    text = jax.jit(function).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert "callback" not in text
    number = text.count("@triton_kernel_call")
    if platform == "cpu":
        assert "@batchnorm_forward" in text
        return names[:number]
    assert number == len(names), (number, names)
    return sorted(names)


def batch_norm(x: Any, training: bool = True, **options: Any) -> tuple[Any, Any]:
    parameters, state = batchnorm.init(x, axis=1, renorm=options.get("renorm", False))
    return batchnorm.batch_norm(x, parameters, state, training=training, axis=1, **options)


def y_of(x: Any, **options: Any) -> Any:
    return batch_norm(x, update_statistics=False, **options)[0]


def step(x: Any) -> Any:
    def loss(x: Any) -> Any:
        y, state = batch_norm(x)
        return jnp.sum(jnp.sin(y.astype("float32"))), state

    return jax.value_and_grad(loss, has_aux=True)(x)


def tangent(x: Any) -> Any:
    return jax.jvp(y_of, (x,), (x,))


def weighted(x: Any) -> Any:
    weights = np.linspace(0, 1, 8, dtype="float32")
    return jax.grad(lambda x: jnp.sum(jnp.sin(y_of(x, batch_weights=weights))))(x)


gpu.triton_call = call
jax_triton.triton_lib.compile_ttir_inplace = compiled
jax.local_devices = lambda: [Device()]
device.compare = lambda device, dtype: None
jax.default_backend = lambda: "gpu"
programs = {
    "training": kernels(batch_norm),
    "step": kernels(step),
    "tangent": kernels(tangent),
    "inference": kernels(lambda x: y_of(x, training=False)),
    "renorm": kernels(lambda x: y_of(x, renorm=True)),
    "weights": kernels(weighted),
    "bfloat16": kernels(step, jnp.asarray(X, "bfloat16")),
    "cpu": kernels(batch_norm, platform="cpu"),
}
print(json.dumps({"programs": programs, "takes": takes}))
