"""Where PyTorch's side is called: what decides whether the kernels may run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.autograd import forward_ad

from batchnorm.backends.loading import load_operators, missing
from batchnorm.backends.torch import device
from batchnorm.backends.torch.watchers import PLAIN, observed

# Why there are none for the CPU. Nobody is told before a tensor there asks: on a GPU they are not
# needed.
UNAVAILABLE = missing("torch")


def unavailable() -> str | None:
    """Why there are no kernels for the CPU, whatever is called."""
    return load_operators("torch")


# A compiler says it while it traces.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_not(x: torch.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    reason = unavailable() if x.is_cpu else device.why_not(x)
    if reason is not None:
        return reason
    if forward_ad._current_level >= 0:  # torch.func.jvp, or a level of forward_ad
        return "The native kernels have no forward-mode derivative."
    return None


def on_host(vectors: Iterable[torch.Tensor]) -> list[np.ndarray] | None:
    """Vectors that nothing differentiates as arrays; None where someone must see what is done.

    A call of NumPy costs a quarter of torch's.
    """
    if torch.compiler.is_compiling() or observed() or forward_ad._current_level >= 0:
        return None
    arrays = []
    for one in vectors:
        if type(one) not in PLAIN or not one.is_cpu or one.dtype not in _NUMPY:
            return None
        arrays.append(one.numpy(force=True))
    return arrays


_NUMPY = (torch.float32, torch.float64, torch.int32, torch.int64)


def recomputing() -> bool:
    """Whether a backward pass is running: then `torch.utils.checkpoint` is calling again.

    Its second call would update moving statistics twice (pytorch/pytorch#96136).
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
