"""Who is calling PyTorch's side, and where: what decides whether the kernels may run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch.autograd import forward_ad

from batchnorm.backends.loading import load_operators
from batchnorm.backends.torch import device

UNAVAILABLE = load_operators("torch")
PLAIN = (torch.Tensor, torch.nn.Parameter)


def why_not(x: torch.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    reason = UNAVAILABLE if x.is_cpu else device.why_not(x)
    if reason is not None:
        return reason
    if forward_ad._current_level >= 0:  # torch.func.jvp, or a level of forward_ad
        return "The native kernels have no forward-mode derivative."
    return None


def traced(x: torch.Tensor) -> bool:
    """Whether what is called now becomes a program that may run elsewhere."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._get_dispatch_mode(_PROXY) is not None  # make_fx
    )


_PROXY = torch._C._TorchDispatchModeKey.PROXY


# torch 2.6 has none
_is_exporting = getattr(torch.compiler, "is_exporting", torch.jit.is_scripting)


def exporting() -> bool:
    """Whether a program is made that others will read: `torch.export`, ONNX, `torch.jit.trace`."""
    return _is_exporting() or torch._C._get_tracing_state() is not None


def observed() -> bool:
    """Whether someone must see every operation: a transformation, a tracer, the profiler."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


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
