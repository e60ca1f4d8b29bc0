"""Who looks on while PyTorch's side runs: tracers, compilers, transformations, the profiler."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

PLAIN = (torch.Tensor, torch.nn.Parameter)  # other subclasses of Tensor want the dispatcher


def transformed() -> bool:
    """Whether what happens is looked through: there is no better derivative than the whole one."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


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
