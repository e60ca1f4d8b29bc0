"""The kernels on the CPU: behind the operators, and past torch's dispatcher.

Importing this module raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.library import check
from batchnorm._native.operands import KERNELS
from batchnorm.backends.torch import call
from batchnorm.backends.torch.operators import function, registry


def remember(
    state: Mapping[str, Tensor],
    moments: Sequence[Tensor],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, Tensor] | None:
    """The moving averages and counters after a step; None for a state that is laid out otherwise.

    No operator: nothing is differentiated, and a tracer takes another way.
    """
    mean = moments[0]
    names = [
        name for name in ("moving_mean", "moving_variance", "skipped_updates") if name in state
    ]
    old = [state[name] for name in names]
    for one, dtype in zip(old, (mean.dtype, mean.dtype, torch.int32), strict=False):
        if one.dtype is not dtype or one.numel() != mean.numel() or not one.is_contiguous():
            return None
    new = [torch.empty_like(one) for one in old]
    given, made = ([*map(Tensor.data_ptr, some), None][:3] for some in (old, new))
    pointers = (*map(Tensor.data_ptr, moments), momentum, unbiased, propagate, *given, *made)
    code = call.CODES[mean.dtype]
    check(call.kernels, call.kernels.bn_remember(code, *mean.shape, *pointers))
    result = dict(zip(names, new, strict=True))
    if "num_updates" in state:
        result["num_updates"] = state["num_updates"] + 1
    return result


# What the operators run; callable on plain tensors too, past torch's dispatcher.
kernels: dict[str, Callable[..., Any]] = {name: function(name, call.Call) for name in KERNELS}
for _name, _run in kernels.items():
    registry.impl(_name, _run, "CPU")


def borrow_threads() -> bool:
    """Runs the kernels on torch's own OpenMP team: two spinning teams slow each other down."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    return any(call.kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
