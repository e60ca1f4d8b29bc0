"""Compiles the GPU kernels as calls ask for them, without a GPU; a line of JSON for each.

    python gpu_compile.py 13 80 90 100     one of 13, for these compute capabilities

What the package would launch is caught, Triton's launcher says what it would compile for it, and
NVIDIA's own tool what the machine code takes.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from batchnorm._native.triton.layout import REGISTERS
from batchnorm.backends.torch import gpu

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Many rows and few, channels that are full vectors and odd ones, groups and one, tiles that are
# full, by half or not; and one that takes 64 bits.
SIZES = (
    (1, 1, 200_704, 64, 1), (1, 1, 4095, 256, 1), (4, 8, 64, 33, 1), (32, 1, 1, 16, 3136),
    (33, 1, 1, 16, 3136), (32, 1, 1, 16, 196), (64, 1, 1, 5, 49),
    (2, 3, 5, 2, 7), (65536, 1, 1, 2, 65536),
)  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# A kernel, its warps, and its signature, constants and attributes
Source = tuple[Any, int, dict[str, str], dict[Any, Any], dict[Any, Any]]


class Driver:
    """What Triton asks of a device before it compiles for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


def described(kernel: Any, operands: tuple[Any, ...], constants: dict[str, Any]) -> Source:
    """What Triton's own launcher would compile for these arguments."""
    *_, backend, binder = kernel.device_caches[0]
    warps = constants.pop("num_warps")
    given = {**constants, "debug": False, "instrumentation_mode": ""}
    bound, specialization, options = binder(*operands, **given)
    _, *source = kernel._pack_args(backend, given, bound, specialization, options)
    return kernel, warps, *source


def caught() -> Iterator[Source]:
    """Every launch of every kind of call, each once."""
    driver.set_active(Driver())
    found: dict[str, Source] = {}

    def catch(kernel: Any, grid: Any, *operands: Any, **constants: Any) -> None:
        source = described(kernel, operands, constants)
        found.setdefault(f"{kernel.__name__} {source[1:]}", source)

    gpu.launch = catch
    for dtype, sizes in itertools.product(TYPES, SIZES):
        for weighted, relu in ((False, 0), (False, 1), (True, 1)):
            every_operator(dtype, sizes, weighted, relu)
    for counter in (torch.int32, torch.int64):
        vectors = [torch.empty(3, 5) for _ in range(3)]
        state = {"moving_mean": vectors[0], "moving_variance": vectors[1]}
        state["skipped_updates"] = torch.empty(15, dtype=torch.int32)
        state["num_updates"] = torch.empty((), dtype=counter)
        for flags in itertools.product((False, True), repeat=2):
            gpu.remember(state, (*vectors, torch.empty(3, 1)), 0.9, *flags)
    yield from found.values()


def every_operator(dtype: torch.dtype, sizes: Any, weighted: bool, relu: int) -> None:
    a, g, b, c, d = sizes
    x = torch.empty(sizes, dtype=dtype, device="meta")
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    vector = torch.empty(g, c, dtype=wide, device="meta")
    weights = torch.empty((a, 1, b, 1, d), dtype=wide, device="meta") if weighted else None
    live = vector if weighted else None
    count = torch.empty((g, 1), dtype=wide, device="meta")
    vectors = (vector, vector, vector, count, vector, vector, live)
    kernels, how = gpu.kernels, (1e-3, relu)
    kernels["moments"](x, sizes, weights)
    kernels["forward"](x, sizes, weights, vector, vector, *how)
    kernels["forward_add"](x, sizes, x, weights, vector, vector, *how)
    kernels["standardize"](x, sizes, weights, *vectors, *how, False)
    kernels["standardize_add"](x, sizes, x, weights, *vectors, *how, False)
    kernels["backward_sums"](x, sizes, x, weights, *vectors[:3], *vectors[4:6], *how)
    kernels["backward_input"](x, sizes, x, weights, *vectors, vector, vector, *how)
    for frozen in (False, True):
        kernels["backward"](x, sizes, x, weights, *vectors, *how, frozen)
        kernels["backward_add"](x, sizes, x, x, weights, *vectors, *how, frozen)


def compiled(source: Source, capability: int) -> dict[str, Any]:
    """What the machine code of a kernel takes."""
    kernel, warps, signature, constants, attributes = source
    made = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "maxnreg": REGISTERS},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(n) for name, n in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    types = [signature[name] for name in ("x", "weights") if name in signature]
    fixed = {kernel.arg_names[place[0]]: value for place, value in constants.items()}
    shape = [fixed.get(name) for name in ("ROWS", "LANES", "WIDTH", "SPLITS", "GROUPED")]
    return {"kernel": kernel.__name__, "sm": capability, "types": types, "tile": shape, **used}


def main() -> None:
    every = int(sys.argv[1])  # of so many kernels one
    capabilities = [int(one) for one in sys.argv[2:]]
    sources = list(caught())
    for i, (source, capability) in enumerate(itertools.product(sources, capabilities)):
        if i % every == 0:
            print(json.dumps(compiled(source, capability)), flush=True)
    print(json.dumps({"kernels": len(sources)}))


if __name__ == "__main__":
    main()
