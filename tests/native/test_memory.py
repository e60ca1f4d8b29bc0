"""A training step holds x, y and vectors, and nothing else of x's size; 16-bit input stays so."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import batchnorm

DTYPES = ("float32", "bfloat16")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@pytest.mark.parametrize("mode", ["plain", "renorm", "ghost", "weights"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_saves_x_and_vectors(dtype: str, mode: str) -> None:
    import torch

    x = torch.randn(64, 50, 8).to(getattr(torch, dtype)).requires_grad_()
    options = {"renorm": {"renorm": True}, "ghost": {"virtual_batch_size": 16}}.get(mode, {})
    weights = torch.rand(64) if mode == "weights" else None
    parameters, state = batchnorm.init(x, renorm=mode == "renorm")
    saved: dict[bool, dict[int, int]] = {}
    for fused in (True, False):
        held = saved[fused] = {}

        def pack(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = batchnorm.batch_norm(
                x, parameters, state, training=True, fused=fused, batch_weights=weights, **options
            )
        held.pop(x.untyped_storage().data_ptr(), None)
        assert y.dtype == x.dtype
    per_position = 64 * 50 * 4 if mode == "weights" else 0
    assert sum(saved[True].values()) <= 1000 + per_position  # vectors of up to 4 groups
    assert sum(saved[False].values()) <= 2000 + per_position


@pytest.mark.parametrize("mode", ["plain", "renorm", "weights"])
@pytest.mark.parametrize("activation", ["relu", None])
def test_torch_saves_y_with_a_residual_and_relu(activation: str | None, mode: str) -> None:
    import torch

    x, residual = (torch.randn(64, 50, 8, requires_grad=True) for _ in range(2))
    weights = torch.rand(64) if mode == "weights" else None
    parameters, state = batchnorm.init(x, renorm=mode == "renorm")
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = batchnorm.batch_norm(
            x, parameters, state, training=True, fused=True, renorm=mode == "renorm",
            batch_weights=weights, residual=residual, activation=activation,
        )  # fmt: skip
    assert held.pop(x.untyped_storage().data_ptr())
    assert bool(held.pop(y.untyped_storage().data_ptr(), 0)) is (activation == "relu")
    assert sum(held.values()) <= 1000 + (64 * 50 * 4 if mode == "weights" else 0)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("axis", [1, -1])
def test_a_step_of_jax_holds_nothing_more(axis: int, dtype: str) -> None:
    import jax

    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(32, 32, 256)), dtype)
    parameters, state = batchnorm.init(x, axis=axis)
    scratch = {}
    for fused in (True, False):

        def step(x, dy, fused=fused):
            def normalized(x, parameters):
                y, new = batchnorm.batch_norm(
                    x, parameters, state, axis=axis, training=True, fused=fused
                )
                return y, new

            y, pull, new = jax.vjp(normalized, x, parameters, has_aux=True)
            return y, new, pull(dy)

        compiled = jax.jit(step).lower(x, x).compile()
        scratch[fused] = compiled.memory_analysis().temp_size_in_bytes
        wide = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
        if fused and dtype != "float32":
            assert max(np.prod([int(size) for size in one.split(",")]) for one in wide) < x.size
    # x, dy, y and dx are arguments and results. Of arguments in bfloat16, and of nothing else, XLA
    # makes a copy when they are reshaped (JAX 0.10.2).
    copies = 2 if dtype == "bfloat16" else 0
    assert scratch[True] < (copies + 1 / 8) * x.size * BYTES[dtype]


PEAK = """
import re
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def reset():
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from here
"""
STEPS = {
    "torch": """
import torch, batchnorm
def make(n): return torch.ones(n, 64, dtype=getattr(torch, DTYPE))
def step(x, dy):
    x = x.detach().requires_grad_()
    y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), training=True, fused=FUSED)
    return y, torch.autograd.grad(y, x, dy)
""",
    "tensorflow": """
import tensorflow as tf, batchnorm
def make(n): return tf.ones((n, 64), DTYPE)  # no temporaries
def step(x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), training=True, fused=FUSED)
    return y, tape.gradient(y, x, dy)
""",
}
MEASURE = """
step(make(64), make(64))  # whatever is set up once
n = (48 << 20) // 64 // ITEM
x, dy = make(n), make(n)
reset()
before = status("VmRSS")
kept = step(x, dy)
print((status("VmHWM") - before) / (48 << 20))
"""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(STEPS))
def test_the_peak_is_y_and_dx(python: Callable[..., str], name: str, dtype: str) -> None:
    """In units of x. The composite path needs 5 and more, on PyTorch 3; in one type."""

    pytest.importorskip(name)

    def peak(fused: bool) -> float:
        set_up = f"DTYPE, ITEM, FUSED = {dtype!r}, {BYTES[dtype]}, {fused}\n"
        return float(python(set_up + PEAK + STEPS[name] + MEASURE))

    assert 1.8 < peak(True) < 2.3
    if dtype == "float32":
        least, most = (2.8, 3.3) if name == "torch" else (3.8, 20)
        assert least < peak(False) < most
