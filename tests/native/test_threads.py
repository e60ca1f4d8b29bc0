"""Threads: any number of them, several callers at once, and after fork; always the same bits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import engines
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from strategies import call_on

BITS = """
import hashlib, numpy as np
import batchnorm, engines
engine = engines.ENGINES[NAME]
from strategies import call_on
digest = hashlib.sha256()
for shape, axis, extra in [((40_000, 17), -1, {}), ((16, 17, 4_001), 1, {}),
                           ((64, 999, 16), -1, {"virtual_batch_size": 16})]:
    rng = np.random.default_rng(0)
    call = call_on(rng, rng.normal(3.0, 2.0, shape).astype("float32"), axis=axis)
    step = engines.stepper(engine, engine.quick, axis=axis, training=True, fused=True, **extra)
    for dtype in (None, "bfloat16") if NAME == "torch" else (None,):
        found = step(call.x, call.parameters, call.state, dy=call.dy, dtype=dtype)
        for name in ("y", "dx", "gamma", "beta"):
            digest.update(np.ascontiguousarray(found[name]).tobytes())
        digest.update(found["state"]["moving_variance"].tobytes())
from batchnorm._native.library import load
print(load().bn_get_threads(), digest.hexdigest())
"""


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_any_number_of_threads_gives_the_same_bits(python: Callable[..., str], name: str) -> None:
    pytest.importorskip(name)
    code = f"NAME = {name!r}\n{BITS}"
    found = [python(code, OMP_NUM_THREADS=threads).split() for threads in ("1", "3")]
    assert [threads for threads, _ in found] == ["1", "3"]
    assert len({digest for _, digest in found}) == 1


def test_the_default_is_the_cores_that_there_are(python: Callable[..., str]) -> None:
    code = "import os; from batchnorm._native.library import load\n"
    code += "print(load().bn_get_threads() == len(os.sched_getaffinity(0)))"
    assert python(code, OMP_NUM_THREADS=None).strip() == "True"


def test_the_number_can_be_set(python: Callable[..., str]) -> None:
    code = "from batchnorm._native.library import load; kernels = load()\n"
    code += "kernels.bn_set_threads(3); print(kernels.bn_get_threads())\n"
    code += "kernels.bn_set_threads(0); print(kernels.bn_get_threads())"
    assert python(code, OMP_NUM_THREADS="2").split() == ["3", "2"]


def test_callers_at_once_do_not_disturb_each_other(engine: engines.Engine) -> None:
    calls = []
    for seed, shape in enumerate([(3_001, 33), (2_000, 8), (999, 130), (40_000, 3)]):
        rng = np.random.default_rng(seed)
        calls.append(call_on(rng, rng.normal(1.0, 2.0, shape).astype("float32")))
    options = Options(fused=True)

    def run(call: Any) -> list[np.ndarray]:
        state = {name: engine.tensor(value) for name, value in call.state.items()}
        upstream = engine.tensor(call.dy)

        def loss(x: Any, gamma: Any, beta: Any) -> Any:
            y, new = normalize(options, x, {"gamma": gamma, "beta": beta}, state, True)
            return engines.total(y * upstream), (y, new["moving_variance"])

        arguments = [engine.tensor(v) for v in (call.x, *call.parameters.values())]
        (_, extra), grads = engine.gradients(loss, *arguments)
        return [engine.numpy(one) for one in (*extra, *grads)]

    alone = [run(call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, calls * 6))
    for i, found in enumerate(together):
        for got, expected in zip(found, alone[i % len(calls)], strict=True):
            np.testing.assert_array_equal(got, expected)


# After fork; JAX and TensorFlow do not survive one themselves.

FORK = """
before = work()
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os._exit(0 if work() == before else 3)
    assert os.waitpid(child, 0)[1] == 0
assert work() == before
"""


def test_the_kernels_own_threads_survive_a_fork(python: Callable[..., str]) -> None:
    code = """
import os, signal, numpy as np
from batchnorm._native.library import load
import ctypes
kernels = load()
def work():
    x = np.random.default_rng(0).normal(size=(60_000, 33)).astype("float32")
    outs = [np.zeros((1, 33), "float32") for _ in range(3)] + [np.zeros((1, 1), "float32"), x * 0]
    dims = (ctypes.c_int64 * 5)(1, 1, *x.shape, 1)
    for _ in range(5):
        code = kernels.bn_forward(0, dims, x.ctypes.data, None, None, 1e-3, None, None, 0,
                                  *(o.ctypes.data for o in outs))
        assert code == 0
    return b"".join(o.tobytes() for o in outs)
"""
    python(code + FORK, OMP_NUM_THREADS="2")


def test_torch_survives_a_fork(python: Callable[..., str]) -> None:
    """The parent has used torch's team of threads, the children have none of it."""
    pytest.importorskip("torch")
    code = """
import os, signal, torch, batchnorm
def work():
    torch.manual_seed(0)
    x = torch.randn(60_000, 33, requires_grad=True)
    parameters, state = batchnorm.init(x)
    y, _ = batchnorm.batch_norm(x, parameters, state, training=True, fused=True)
    y.backward(x.detach())
    # bytes: torch.equal would hang in a child, it uses torch's team
    return y.detach().numpy().tobytes(), x.grad.numpy().tobytes()
"""
    python(code + FORK, OMP_NUM_THREADS="2")


def test_a_data_loader_with_workers_may_normalize(python: Callable[..., str]) -> None:
    pytest.importorskip("torch")
    code = """
import torch, batchnorm
class Data(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        x = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(i))
        return batchnorm.batch_norm(x, *batchnorm.init(x), training=True, fused=True)[0]
data = Data()
expected = [data[i] for i in range(8)]
loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, timeout=120,
                                     multiprocessing_context="fork")
for epoch in range(2):
    assert all(map(torch.equal, loader, expected))
"""
    python(code, OMP_NUM_THREADS="2")
