"""PyTorch on an NVIDIA GPU: what is measured there, by the GPU's own clock.

A call is captured as a CUDA graph, which is replayed: nobody waits for Python. What Python takes is
a question of its own, `FromPython`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from batchnorm import init
from batchnorm import why_not as why_not_kernels
from benchmarks import ours, with_torch
from benchmarks.cases import Case
from benchmarks.ours import EPSILON, MOMENTUM, Function, Given
from benchmarks.timing import Call, Clock

DEVICE = "cuda"
COMPILED = 40, 60  # megabytes: each shape is compiled for itself
SHORT = 2e-3  # seconds; shorter calls are timed several at once

forward_backward = with_torch.forward_backward
forward = with_torch.forward


def why_not() -> str | None:
    """Why nothing can be measured here, in a sentence."""
    if torch.cuda.is_available() and torch.version.hip is None:
        return None
    return "gpu: there is no NVIDIA GPU here, so nothing was measured."


def composite() -> str | None:
    """Why ours takes the composite path there, if it does: nobody asks for the CPU's kernels."""
    return why_not_kernels(torch.empty(1, device=DEVICE))


def device() -> str:
    """The device, for every row; from here on there is one stream."""
    settle()
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def tensor(array: np.ndarray, dtype: str = "float32") -> torch.Tensor:
    return with_torch.tensor(array, dtype).to(DEVICE)


def parameter(array: np.ndarray) -> torch.Tensor:
    """A tensor that gradients are taken of, as a module holds it."""
    return torch.nn.Parameter(tensor(array))


def given(case: Case, renorm: bool = False) -> Given:
    """The tensors of a case, made where they are needed; channels-last as torch has it."""
    shape = case.size.shape("first")
    made = []
    for seed in (1, 2):
        random = torch.Generator(DEVICE).manual_seed(seed)
        one = torch.randn(shape, generator=random, device=DEVICE).to(getattr(torch, case.dtype))
        if case.layout == "last" and one.ndim > 2:
            order = torch.channels_last if one.ndim == 4 else torch.channels_last_3d
            one = one.contiguous(memory_format=order)
        made.append(one)
    x, dy = made
    gamma, beta = (parameter(vector) for vector in ours.vectors((case.size.c,)))
    _, state = init(x, axis=1, renorm=renorm)
    return Given((x * 2 + 1).requires_grad_(), dy, gamma, beta, state, {}, 1)


class FromPython:
    """A call that is timed with all that Python does, by the clock of the processor."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self) -> Any:
        return self.call()


def clock(call: Call) -> Clock:
    """Times a call: replays of its graph on the device, or what a loop in Python takes."""
    for _ in range(3):  # compiles, and is compared at its first use
        call()
    if isinstance(call, FromPython):
        return lambda: _seconds_of_python(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    taken = _seconds(graph.replay, 1)
    times = min(max(int(SHORT / max(taken, 1e-6)), 1), 200)
    return lambda: _seconds(graph.replay, times)


def _seconds(call: Call, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def _seconds_of_python(call: Call, times: int = 50) -> float:
    torch.cuda.synchronize()
    started = perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (perf_counter() - started) / times


def settle() -> None:
    """One stream for all that is made and captured: the default one cannot be captured, and a
    backward pass runs where its forward pass did."""
    if torch.cuda.current_stream() == torch.cuda.default_stream():
        torch.cuda.set_stream(torch.cuda.Stream())


def backward(function: Function, given: Given) -> Call:
    """A call that returns the gradients of x, gamma and beta, of a y that was made before."""
    x, dy, gamma, beta, state, extra, _ = given
    y = function(x, gamma, beta, state, extra)[0]
    return lambda: torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True)


def copy(given: Given) -> Call:
    """A copy of x to memory that is there: what one reading and one writing takes."""
    x = given.x.detach()
    out = torch.empty_like(x)
    return lambda: out.copy_(x)


def peers(case: Case, given: Given, training: bool) -> dict[str, Function]:
    """torch's own, which takes cuDNN where it likes it, and the same without; compiled at one size.

    Ours takes a residual and ReLU inside; theirs are three steps.
    """
    torchs = own(given, training)
    result = {"torch": torchs, "torch, without cuDNN": _without_cudnn(torchs)}
    low, high = COMPILED
    if low < case.size.megabytes(case.dtype) < high:
        torch._dynamo.reset()  # else the ninth shape is run eagerly, and nobody says so
        result["torch.compile"] = torch.compile(torchs, fullgraph=True, dynamic=False)
    return result


def own(given: Given, training: bool = True) -> Function:
    """torch's batch normalization; a residual and ReLU are two steps more."""
    running = given.state["moving_mean"].clone(), given.state["moving_variance"].clone()

    def function(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        y = F.batch_norm(x, *running, gamma, beta, training, 1 - MOMENTUM, EPSILON)
        return (torch.relu(y + extra["residual"]) if "residual" in extra else y,)

    return function


def _without_cudnn(function: Function) -> Function:
    def native(*operands: Any) -> tuple[Any, ...]:
        with torch.backends.cudnn.flags(enabled=False):
            return function(*operands)

    return native


def cuts(case: Case, given: Given) -> dict[str, Callable[[], Any]]:
    """Forward steps that are cut at the moments, as synchronized ones are: torch's and apex's."""
    x, _, gamma, beta, *_ = given
    found: dict[str, Callable[[], Any]] = {}

    def torchs() -> Any:
        mean, inverse = torch.batch_norm_stats(x.detach(), EPSILON)
        return torch.batch_norm_elemt(x.detach(), gamma, beta, mean, inverse, EPSILON)

    found["torch.batch_norm_stats, _elemt"] = torchs
    if importlib.util.find_spec("syncbn") is not None:  # of apex
        found["apex syncbn"] = _apex(case, x.detach(), gamma, beta)
    return found


def _apex(case: Case, x: Any, gamma: Any, beta: Any) -> Callable[[], Any]:
    syncbn = importlib.import_module("syncbn")
    if case.layout == "last":
        x = x.movedim(1, -1)

    def step() -> Any:
        if case.layout == "last":
            mean, variance = syncbn.welford_mean_var_c_last(x)
            inverse = torch.rsqrt(variance + EPSILON)
            return syncbn.batchnorm_forward_c_last(x, None, mean, inverse, gamma, beta, False)
        mean, variance = syncbn.welford_mean_var(x)
        return syncbn.batchnorm_forward(x, mean, torch.rsqrt(variance + EPSILON), gamma, beta)

    return step


def no_gradients(call: Call) -> Call:
    """The call, without a thought of derivatives."""

    def quietly() -> Any:
        with torch.no_grad():
            return call()

    return quietly
