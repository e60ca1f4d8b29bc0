"""A plain call in one go on the CPU: what C takes, pointers and numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch

from batchnorm._native.library import check
from batchnorm.backends.torch.place import UNAVAILABLE
from batchnorm.backends.torch.whole import Lies, Ready

if UNAVAILABLE is None:
    from batchnorm.backends.torch.call import CODES, HUGE, kernels

Pointers = tuple[int | None, ...]


class OnCpu(Ready):
    """Moments are kept in one tensor: means, remainders, variances, counts."""

    counters = (torch.int32,)

    def __init__(self, plan: Any) -> None:
        super().__init__(plan)
        self.step = self.length * self.statistics.itemsize
        self.code = CODES[self.statistics]

    @staticmethod
    def beside(vector: torch.Tensor, x: torch.Tensor) -> bool:
        return vector.is_cpu

    @staticmethod
    def order(*sizes: int) -> Any:
        return (ctypes.c_int64 * len(sizes))(*sizes)

    def at(self, kept: Any) -> Pointers:
        (moments,) = kept
        at, step = moments.data_ptr(), self.step
        return at, at + step, at + 2 * step, at + 3 * step

    def at_moving(self, mean: Any, variance: Any) -> Pointers:
        return mean.data_ptr(), None, variance.data_ptr(), None

    def vectors(self, kept: Any) -> list[torch.Tensor]:
        (moments,), n = kept, self.length
        vectors = [moments[i * n : (i + 1) * n].view(self.rows) for i in range(3)]
        return [*vectors, moments[3 * n :].view(-1, 1)]

    def infer(
        self, lies: Lies, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
    ) -> torch.Tensor:
        y = _fresh(x)
        code = kernels.bn_standardize(
            CODES[x.dtype],
            lies[1],
            x.data_ptr(),
            None,
            None,
            mean.data_ptr(),
            None,
            variance.data_ptr(),
            self.epsilon,
            _pointer(gamma),
            _pointer(beta),
            self.activation,
            y.data_ptr(),
        )
        check(kernels, code)
        return y

    def forward(self, lies: Lies, x: Any, gamma: Any, beta: Any) -> tuple[torch.Tensor, ...]:
        y = _fresh(x)
        moments = torch.empty(3 * self.length + self.rows[0], dtype=self.statistics)
        code = kernels.bn_forward(
            CODES[x.dtype],
            lies[1],
            x.data_ptr(),
            None,
            None,
            self.epsilon,
            _pointer(gamma),
            _pointer(beta),
            self.activation,
            *self.at((moments,)),
            y.data_ptr(),
        )
        check(kernels, code)
        return y, moments

    def backward(
        self, lies: Lies, x: Any, dy: Any, gamma: Any, beta: Any, at: Any, frozen: bool
    ) -> Any:
        dx = _fresh(x)
        sum_dy, sum_dy_xh = (
            torch.empty(self.length, dtype=self.statistics)
            if one is None
            else torch.empty_like(one)
            for one in (beta, gamma)
        )
        mean, remainder, variance, count = at
        code = kernels.bn_backward(
            CODES[x.dtype],
            lies[1],
            x.data_ptr(),
            dy.data_ptr(),
            None,
            None,
            count,
            mean,
            remainder,
            variance,
            self.epsilon,
            _pointer(gamma),
            _pointer(beta),
            self.activation,
            None,
            frozen,
            sum_dy.data_ptr(),
            sum_dy_xh.data_ptr(),
            dx.data_ptr(),
        )
        check(kernels, code)
        return dx, None if gamma is None else sum_dy_xh, None if beta is None else sum_dy

    def remember(
        self, kept: Any, state: Mapping[str, Any], new: Mapping[str, Any], number: Any
    ) -> None:
        code = kernels.bn_remember(
            self.code,
            *self.rows,
            *self.at(kept),
            *self.how,
            state["moving_mean"].data_ptr(),
            state["moving_variance"].data_ptr(),
            _pointer(state.get("skipped_updates")),
            _pointer(number),
            new["moving_mean"].data_ptr(),
            new["moving_variance"].data_ptr(),
            _pointer(new.get("skipped_updates")),
            None if number is None else new["num_updates"].data_ptr(),
        )
        check(kernels, code)


def _fresh(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    if out.nbytes >= HUGE:
        kernels.bn_advise_huge(out.data_ptr(), out.nbytes)
    return out


def _pointer(vector: torch.Tensor | None) -> int | None:
    return None if vector is None else vector.data_ptr()
