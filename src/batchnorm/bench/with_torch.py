"""PyTorch, eager as it is used: what is measured there, and what it has of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._dynamo
import torch.distributed as dist
import torch.nn.functional as F

from batchnorm.backends import torch as backend
from batchnorm.bench import ours
from batchnorm.bench.ours import EPSILON, MOMENTUM, Function, Given
from batchnorm.bench.plan import Case

FRAMEWORK = "torch"
COMPILED_MEGABYTES = 60  # each shape is compiled for itself, and that takes longer than measuring
UNAVAILABLE = backend.UNAVAILABLE

relu = torch.relu


def tensor(array: np.ndarray, dtype: str = "float32") -> torch.Tensor:
    return torch.from_numpy(array).to(getattr(torch, dtype))


def parameter(array: np.ndarray) -> torch.Tensor:
    """A tensor that gradients are taken of."""
    return tensor(array).requires_grad_()


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
    running = given.state["moving_mean"].clone(), given.state["moving_variance"].clone()

    def own(x: Any, gamma: Any, beta: Any, state: Any, extra: Any) -> tuple[Any]:
        return (F.batch_norm(x, *running, gamma, beta, training, 1 - MOMENTUM, EPSILON),)

    result: dict[str, Function] = {"torch eager": own}
    wanted = case.what == "forward + backward"
    if wanted and case.size.megabytes(case.dtype) < COMPILED_MEGABYTES:
        torch._dynamo.reset()  # else the ninth shape is run eagerly, and nobody says so
        result["torch.compile"] = torch.compile(own, fullgraph=True, dynamic=False)
    return result


def small(case: Case, given: Given) -> tuple[dict[str, Callable[[], Any]], str]:
    """Forward calls of ours, by name, and torch's own under the name that is returned with them."""
    x, gamma, beta = (one.detach() for one in (given.x, given.gamma, given.beta))
    calls = {
        "ours": forward(ours.plain(given), given),
        "torch eager": forward(peers(case, given, True)["torch eager"], given),
    }
    if UNAVAILABLE is None:
        sizes = (1, 1, *x.shape, 1)

        def raw() -> Any:
            return backend.derivatives.forward(x, sizes, None, gamma, beta, EPSILON, 0)

        calls["ours, operator"] = raw
    return calls, "torch eager"
