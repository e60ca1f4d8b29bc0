"""PyTorch. See `batchnorm.backends` for what a backend is."""

from __future__ import annotations

import functools

import torch
from torch.autograd import forward_ad

from batchnorm.backends import fused, host, steps
from batchnorm.backends.torch import derivatives, inference, lean, operations
from batchnorm.backends.torch.operations import *  # noqa: F403
from batchnorm.backends.torch.place import UNAVAILABLE as UNAVAILABLE
from batchnorm.backends.torch.place import on_host, recomputing, unavailable, why_not
from batchnorm.backends.torch.replicas import aligned, all_gather, find_replicas
from batchnorm.backends.torch.watchers import traced
from batchnorm.backends.torch.whole import whole
from batchnorm.backends.torch.whole_cpu import OnCpu
from batchnorm.backends.torch.whole_gpu import OnGpu

HOST = host
COMPOSITE = steps.Steps(operations, inference.infer, lean.standardize, lean.remember)
KERNELS = fused.Steps(operations, derivatives, functools.partial(whole, OnCpu), adds=True)
ON_GPU = fused.Steps(operations, derivatives, functools.partial(whole, OnGpu), adds=True)


def kernels_for(x: torch.Tensor) -> fused.Steps | str:
    """The kernels where x is, or why there are none: what `why_not` says."""
    if x.is_cpu and UNAVAILABLE is None and forward_ad._current_level < 0:
        return KERNELS
    return why_not(x) or ON_GPU
