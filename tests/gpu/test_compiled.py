"""What the compiler makes of the GPU kernels, for each architecture; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import interpreted

interpreted.skip_without_triton()

import numpy as np
import torch
import triton
import triton.language as tl

from batchnorm._native.triton.layout import REGISTERS
from batchnorm._native.triton.tiles import mine, offsets, place

WORKER = Path(__file__).parents[1] / "workers" / "gpu_compile.py"
ARCHITECTURES = ("80", "90", "100")
# One of so many is compiled, another one for each architecture; COMPILED=1: half an hour.
EVERY = os.environ.get("COMPILED", "29")


def test_no_kernel_spills_or_takes_more_than_128_registers() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    source = str(Path(interpreted.module("_native").__file__ or "").parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([source, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(WORKER), EVERY, *ARCHITECTURES],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *found, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == -(-last["kernels"] * len(ARCHITECTURES) // int(EVERY))
    assert {one["sm"] for one in found} == {80, 90, 100}
    names = {"moments", "standardize", "backward_sums", "backward_input"}
    assert names <= {one["kernel"] for one in found}
    assert {one["types"][0] for one in found if one["types"]} == {
        "*fp32",
        "*bf16",
        "*fp16",
        "*fp64",
    }
    # LOCAL is an array of the program's, STACK where spilled registers are
    wrong = [
        one for one in found if one["REG"] > REGISTERS or one["LOCAL"] != 0 or one["STACK"] != 0
    ]
    assert REGISTERS == 128
    assert not wrong


@triton.jit
def probe(out, number, tile, rows, G, B, C, D, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """Where the elements of a tile of two rows are."""
    group, channel, known = mine(number, C, WIDTH)
    row, position, inside = place(tile, rows, D, 2, LANES, WIDTH, 0)
    at = offsets(row, position, group, channel, G, B, C, D, True)
    to = tl.arange(0, 2)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    tl.store(out + to, at, mask=inside & known)


def test_offsets_by_rows_have_64_bits() -> None:
    """Of elements beyond 2**31, which are not read."""
    sizes = (9, 3, 7, 70_000, 50_000)
    rows, across = 9 * 7, 50_000 // 4
    number = 3 * 70_000 - 1  # the last channel of the last group
    out = torch.zeros(2, 4, dtype=torch.int64)
    probe[(1,)](out, number, rows // 2 * across + 3, rows, *sizes[1:], WIDTH=1, LANES=4)
    last = [(8, 2, 6, 69_999, 3 * 4 + lane) for lane in range(4)]
    assert out[0].tolist() == [np.ravel_multi_index(one, sizes) for one in last]
    assert out[0].min() > 2**31
    assert not out[1].any()  # there is no row behind the last


def test_offsets_by_columns_have_64_bits() -> None:
    sizes = (50_000, 3, 7, 50_001, 1)
    rows, blocks = 50_000 * 7, -(-50_001 // 4)
    out = torch.zeros(2, 4, dtype=torch.int64)
    probe[(1,)](out, 2 * blocks + 1, rows // 2 - 1, rows, *sizes[1:], WIDTH=4, LANES=4)
    for row, found in zip((rows - 2, rows - 1), out.tolist(), strict=True):
        a, b = divmod(row, 7)
        places = [(a, 2, b, 4 + lane, 0) for lane in range(4)]
        assert found == [np.ravel_multi_index(one, sizes) for one in places]
    assert out.min() > 2**31
