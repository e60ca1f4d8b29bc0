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
    mean, n = moments[0], moments[0].numel()
    expected = {
        "moving_mean": (mean.dtype, n),
        "moving_variance": (mean.dtype, n),
        "skipped_updates": (torch.int32, n),
        "num_updates": (torch.int32, 1),
    }
    old = {name: state[name] for name in expected if name in state}
    number = old.get("num_updates")
    further = {}
    if number is not None and number.dtype is not torch.int32:  # torch's modules count in int64
        del old["num_updates"]
        further["num_updates"] = number + 1
    for name, one in old.items():
        if (one.dtype, one.numel()) != expected[name] or not one.is_contiguous():
            return None
    new = {name: torch.empty_like(one) for name, one in old.items()}
    given, made = (
        [some[name].data_ptr() if name in some else None for name in expected]
        for some in (old, new)
    )
    pointers = (*map(Tensor.data_ptr, moments), momentum, unbiased, propagate, *given, *made)
    code = call.CODES[mean.dtype]
    check(call.kernels, call.kernels.bn_remember(code, *mean.shape, *pointers))
    return {**new, **further}


# What the operators run; callable on plain tensors too, past torch's dispatcher.
kernels: dict[str, Callable[..., Any]] = {name: function(name, call.Call) for name in KERNELS}
for _name, _run in kernels.items():
    registry.impl(_name, _run, "CPU")


def borrow_threads() -> bool:
    """Runs the kernels on torch's own OpenMP team: two spinning teams slow each other down."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    return any(call.kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
