"""PyTorch, eager as it is used: what is measured there, and what it has of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._dynamo
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks import ours
from benchmarks.cases import Case
from benchmarks.ours import EPSILON, MOMENTUM, Function, Given

COMPILED_MEGABYTES = 60  # each shape is compiled for itself, and that takes longer than measuring

relu = torch.relu


def tensor(array: np.ndarray, dtype: str = "float32") -> torch.Tensor:
    return torch.from_numpy(array).to(getattr(torch, dtype))


def parameter(array: np.ndarray) -> torch.Tensor:
    """A tensor that gradients are taken of, as a module holds it."""
    return torch.nn.Parameter(tensor(array))


def given(case: Case, renorm: bool = False, native: bool = False) -> Given:
    """The tensors of a case. `native`: channels-last as torch has it, a way to lie in memory."""
    made = ours.given(case, tensor, parameter, renorm)
    if native and case.layout == "last" and made.x.ndim > 2:
        made = made._replace(x=made.x.movedim(-1, 1), dy=made.dy.movedim(-1, 1), axis=1)
    made.x.requires_grad_()
    return made


def forward_backward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y and the gradients of x, gamma and beta."""
    x, dy, gamma, beta, state, extra, _ = given

    def call() -> Any:
        y = function(x, gamma, beta, state, extra)[0]
        return y, torch.autograd.grad(y, (x, gamma, beta), dy)

    return call


def forward(function: Function, given: Given) -> Callable[[], Any]:
    """A call that returns y, and the state."""
    x, _, gamma, beta, state, extra, _ = given

    def call() -> Any:
        with torch.no_grad():
            return function(x, gamma, beta, state, extra)

    return call


def one_replica(given: Given) -> Function:
    """Ours, synchronized over a process group of one process."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return ours.plain(given, synchronized=True)


def peers(case: Case, given: Given, training: bool) -> dict[str, Function]:
    """torch's own, for which the channels are axis 1."""
    own = _functional(given, training)
    result = {"torch eager": own}
    wanted = case.what == "forward + backward"
    if wanted and case.size.megabytes(case.dtype) < COMPILED_MEGABYTES:
        torch._dynamo.reset()  # else the ninth shape is run eagerly, and nobody says so
        result["torch.compile"] = torch.compile(own, fullgraph=True, dynamic=False)
    return result


def _functional(given: Given, training: bool) -> Function:
    running = given.state["moving_mean"].clone(), given.state["moving_variance"].clone()

    def own(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        return (F.batch_norm(x, *running, gamma, beta, training, 1 - MOMENTUM, EPSILON),)

    return own


SMALL = forward, forward_backward


def small_peers(given: Given, training: bool) -> dict[str, Function]:
    """torch's function and its module, which does not count updates here: that takes longer."""
    module = torch.nn.BatchNorm1d(given.gamma.numel(), EPSILON, 1 - MOMENTUM).train(training)
    module.weight, module.bias = given.gamma, given.beta
    module.num_batches_tracked = None

    def own(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        return (module(x),)

    return {"F.batch_norm": _functional(given, training), "nn.BatchNorm1d": own}
