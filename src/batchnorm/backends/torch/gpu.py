"""The kernels on NVIDIA GPUs: behind the operators, and past torch's dispatcher.

Importing this module imports Triton. Where there is none, `place` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import language as tl

from batchnorm._native.operands import KERNELS
from batchnorm._native.triton import backward, moments, standardize
from batchnorm._native.triton.layout import (
    BLOCK,
    CHUNK,
    REGISTERS,
    WARPS,
    Layout,
    layout,
    strides,
)
from batchnorm._native.triton.remember import remember as remember_kernel
from batchnorm.backends.torch.operands import Operands
from batchnorm.backends.torch.operators import function, registry


def launch(kernel: Any, grid: tuple[int, ...], *operands: Any, **constants: Any) -> None:
    """Starts a kernel; its warps are among the constants."""
    kernel[grid](*operands, **constants, maxnreg=REGISTERS)


class Launch:
    """The kernels of one call: what they have in common, of operands that lie as they are read."""

    __slots__ = ("alike", "how", "read", "statistic", "weights", "wsizes", "x")

    def __init__(
        self,
        x: Tensor,
        read: tuple[int, int, int, int, int],
        alike: Sequence[Tensor] = (),
        weights: Tensor | None = None,
        wsizes: tuple[int, ...] = (),
    ) -> None:
        self.x, self.read, self.alike = x, read, alike
        self.weights, self.wsizes = weights, wsizes
        self.how: Layout = layout(read, x.element_size(), weights is not None)
        self.statistic = tl.float64 if x.dtype is torch.float64 else tl.float32

    def run(self, name: str, given: Mapping[str, Any]) -> None:
        """Starts the kernels of an operator."""
        with torch.cuda.device_of(self.x):
            _STEPS[name](self, given)

    def walk(self, *, splits: bool = False) -> tuple[int, ...]:
        """The numbers that every kernel of x gets."""
        how = self.how
        number = (how.splits,) if splits else ()
        own = None if self.weights is None else self.wsizes
        walked = (how.rows, how.tiles, how.per_split, *number, *how.sizes)
        return *walked, *strides(self.read, own)

    def tiles(self, **more: Any) -> dict[str, Any]:
        """The constants of every kernel of x."""
        how = self.how
        return {**how.constants, "STATISTIC": self.statistic, "num_warps": how.warps, **more}

    def partial(self, number: int) -> Tensor:
        """Room for what each split leaves, so many numbers for each channel."""
        how = self.how
        shape = (number, how.splits, how.vectors)
        return torch.empty(shape, dtype=torch.float64, device=self.x.device)

    @property
    def merging(self) -> dict[str, Any]:
        """The constants of a kernel that puts the splits of each channel together."""
        how = self.how
        tile = {"WIDTH": how.WIDTH, "SPLITS": how.SPLITS, "STATISTIC": self.statistic}
        return {**tile, "num_warps": WARPS}


class Call(Operands):
    """The operands of one call, looked at."""

    __slots__ = ()

    def vector(self, vector: Tensor | None, shape: tuple[int, int] | None = None) -> Tensor | None:
        if vector is not None and vector.device != self.x.device:
            raise ValueError(
                f"batchnorm kernels: a per-channel vector must be on {self.x.device}, as x is; "
                f"got one on {vector.device}."
            )
        return super().vector(vector, shape)

    def run(self, name: str, given: Mapping[str, Any]) -> None:
        """Starts the kernels of an operator."""
        if self.x.numel() == 0:
            self._nothing({one: given[one] for one in KERNELS[name].gives.split()})
            return
        Launch(self.x, self.read, self.alike, self.weights, self.wsizes).run(name, given)

    def _nothing(self, results: Mapping[str, Tensor]) -> None:
        """The results of an x without elements; groups without channels have weights too."""
        a, g, b, _, d = self.read
        for name, one in results.items():
            if name != "count":
                one.zero_()
            elif self.weights is None:
                one.fill_(a * b * d)
            else:
                weights = self.weights.view(self.wsizes).expand(a, g, b, d)
                one.copy_(weights.sum((0, 2, 3)).view(self.groups))


MOMENTS = ("mean", "remainder", "variance", "count")
STATE = ("moving_mean", "moving_variance", "skipped_updates", "num_updates")


def _partial_moments(call: Launch) -> Tensor:
    partial = call.partial(3)
    operands = (call.x, call.weights, partial, *call.walk())
    launch(moments.moments, call.how.grid, *operands, **call.tiles(CHUNK=CHUNK))
    return partial


def _moments(call: Launch, given: Mapping[str, Any]) -> None:
    partial = _partial_moments(call)
    g, _, c, _ = call.how.sizes
    results = (given[name] for name in MOMENTS)
    grid = (call.how.programs,)
    launch(moments.merge, grid, partial, *results, g, c, call.how.splits, **call.merging)


def _standardize(call: Launch, given: Mapping[str, Any], partial: Tensor | None = None) -> None:
    residual = call.alike[0] if call.alike else None
    vectors = (given.get(name) for name in (*MOMENTS, "scale", "offset"))
    launch(
        standardize.standardize,
        call.how.grid,
        *(call.x, residual, call.weights, partial, *vectors, given["y"]),
        *(*call.walk(splits=True), given["epsilon"]),
        **call.tiles(RELU=given["activation"] == 1, SPLITS=call.how.SPLITS),
    )


def _forward(call: Launch, given: Mapping[str, Any]) -> None:
    _standardize(call, given, _partial_moments(call))


def _alike(call: Launch) -> tuple[Tensor, Tensor | None]:
    """dy, and y where it was saved."""
    dy, *y = call.alike
    return dy, y[0] if y else None


def _partial_sums(call: Launch, given: Mapping[str, Any]) -> Tensor:
    partial = call.partial(2)
    vectors = (given[name] for name in ("mean", "remainder", "variance", "scale", "offset"))
    launch(
        backward.backward_sums,
        call.how.grid,
        *(call.x, *_alike(call), call.weights, partial, *vectors),
        *(*call.walk(), given["epsilon"]),
        **call.tiles(RELU=given["activation"] == 1, CHUNK=CHUNK),
    )
    return partial


def _backward_sums(call: Launch, given: Mapping[str, Any]) -> None:
    partial = _partial_sums(call, given)
    g, _, c, _ = call.how.sizes
    vectors = (given[name] for name in ("remainder", "variance", "sum_dy", "sum_dy_xh"))
    numbers = (g, c, call.how.splits, given["epsilon"])
    launch(backward.merge_sums, (call.how.programs,), partial, *vectors, *numbers, **call.merging)


def _backward_input(call: Launch, given: Mapping[str, Any], partial: Tensor | None = None) -> None:
    vectors = ("count", "mean", "remainder", "variance", "scale", "offset", "live")
    results = ("sum_dy", "sum_dy_xh", "dx", "d_residual")
    launch(
        backward.backward_input,
        call.how.grid,
        *(call.x, *_alike(call), call.weights, partial),
        *(given.get(name) for name in (*vectors, *results)),
        *(*call.walk(splits=True), given["epsilon"]),
        **call.tiles(RELU=given["activation"] == 1, FROZEN=given["frozen"], SPLITS=call.how.SPLITS),
    )


def _backward(call: Launch, given: Mapping[str, Any]) -> None:
    _backward_input(call, given, _partial_sums(call, given))


_STEPS: dict[str, Callable[[Launch, Mapping[str, Any]], None]] = {
    "moments": _moments,
    "standardize": _standardize,
    "forward": _forward,
    "backward": _backward,
    "backward_sums": _backward_sums,
    "backward_input": _backward_input,
    "standardize_add": _standardize,
    "forward_add": _forward,
    "backward_add": _backward,
}


def remember(
    state: Mapping[str, Tensor],
    moments: Sequence[Tensor],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, Tensor] | None:
    """The moving averages and counters after a step; None for a state that lies otherwise."""
    mean = moments[0]
    old = {name: state[name] for name in STATE if name in state}
    for name, one in old.items():
        size = 1 if name == "num_updates" else mean.numel()
        right = (
            one.dtype is mean.dtype if name.startswith("moving") else not one.is_floating_point()
        )
        if not right or one.numel() != size or not one.is_contiguous():
            return None
        if one.device != mean.device:
            return None
    new = {name: torch.empty_like(one) for name, one in old.items()}
    if mean.numel() == 0:
        if "num_updates" in new:
            new["num_updates"] = old["num_updates"] + 1
        return new
    remember_into(old, new, moments, momentum, unbiased, propagate)
    return new


def remember_into(
    old: Mapping[str, Tensor | None],
    new: Mapping[str, Tensor],
    moments: Sequence[Tensor],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> None:
    """Writes the averages and counters after a step, in memory that may be that of the old ones.

    A counter that is not among the old ones is left alone.
    """
    mean = moments[0]
    absent = {name for name in STATE if old.get(name) is None}
    tensors = (None if name in absent else some[name] for some in (old, new) for name in STATE)
    with torch.cuda.device_of(mean):
        launch(
            remember_kernel,
            (-(-mean.numel() // BLOCK),),
            *(*moments, *tensors, mean.numel(), mean.shape[1], momentum),
            UNBIASED=unbiased,
            PROPAGATE=propagate,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


# What the operators run; callable on plain tensors too, past torch's dispatcher.
kernels: dict[str, Callable[..., Any]] = {name: function(name, Call) for name in KERNELS}
for _name, _run in kernels.items():
    registry.impl(_name, _run, "CUDA")
