"""One call of a kernel on PyTorch's tensors: what it is given, checked."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.library import DTYPES, check, load
from batchnorm._native.operands import KERNELS

kernels = load()
HUGE = 2 << 20  # bytes of an output whose page faults may cost more than the kernel
LIKE_X = ("dy", "residual", "y")  # of what a kernel reads, in the order of its arguments
# What comes behind the operands that a `Call` holds itself: dtype, sizes, x, what is like it, and
# weights.
_REST = {
    name: kernel.c.split()[kernel.c.split().index("weights") + 1 :]
    for name, kernel in KERNELS.items()
}
CODES = {getattr(torch, name): code for name, code in DTYPES.items()}


@functools.lru_cache(maxsize=1024)
def _sizes(*sizes: int) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def statistics_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def arranged(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, bool]:
    """x in an order of memory that the kernels read, and whether its channels lie behind D.

    `channels_last` memory is such an order: D in front of C. Any other is copied.
    """
    if x.is_contiguous():
        return x, False
    x = x.reshape(sizes)
    if x.transpose(3, 4).is_contiguous():
        return x, True
    return x.contiguous(), False


def like(arranged: Tensor, x: Tensor) -> Tensor:
    """An output in the memory order of `arranged` and the shape of x."""
    out = torch.empty_like(arranged)
    return out if out.shape == x.shape else out.view(x.shape)


class Call:
    """One call of a kernel: its big operands in an order that it reads, alive while it runs.

    Raises:
        ValueError: an operand is not what the kernel would read.
    """

    __slots__ = ("alike", "dtype", "first", "given", "groups", "rows", "sizes", "weights", "x")

    def __init__(
        self,
        x: Tensor,
        sizes: Sequence[int],
        weights: Tensor | None,
        alike: Mapping[str, Tensor] | None = None,
    ) -> None:
        a, g, b, c, d = sizes
        if x.numel() != a * g * b * c * d:
            raise ValueError(
                f"batchnorm kernels: sizes must be those of x, {x.numel()} elements; got "
                f"{tuple(sizes)}."
            )
        self.given, self.sizes = x, sizes
        # the imaginary part of a conjugate: its memory has the other sign
        self.x, native = arranged(x.resolve_neg(), sizes)
        self.groups, self.rows = (g, 1), (g, c)
        self.dtype = statistics_type(x)
        read = _sizes(a, g, b * d, c, 1) if native else _sizes(a, g, b, c, d)
        self.first: list[Any] = [CODES[x.dtype], read, self.x.data_ptr()]
        if alike:
            self.alike = [self._like_x(name, one, native) for name, one in alike.items()]
            self.first += [one.data_ptr() for one in self.alike]
        if weights is None:
            self.first += (None, None)
            return
        self.weights, wsizes = self._dense_weights(weights, native)
        self.first += (self.weights.data_ptr(), _sizes(*wsizes))

    def _like_x(self, name: str, one: Tensor, native: bool) -> Tensor:
        """An operand like x in x's memory order."""
        if one.dtype is not self.given.dtype or one.shape != self.given.shape:
            raise ValueError(
                f"batchnorm kernels: {name} must be like x, {self.given.dtype} of shape "
                f"{tuple(self.given.shape)}; got {one.dtype} of shape {tuple(one.shape)}."
            )
        one = one.resolve_neg()
        return one.reshape(self.sizes).transpose(3, 4).contiguous() if native else one.contiguous()

    def _dense_weights(self, weights: Tensor, native: bool) -> tuple[Tensor, tuple[int, ...]]:
        """Weights that the kernels read, and their sizes."""
        a, g, b, one, d = weights.shape
        if one != 1:
            raise ValueError(
                "batchnorm kernels: weights must have the shape [A, G or 1, B, 1, D]; got "
                f"{tuple(weights.shape)}."
            )
        if native and (b, d) != (1, 1):  # B and D are one run now
            weights = weights.expand(-1, -1, self.sizes[2], 1, self.sizes[4])
            b, d = weights.shape[2] * weights.shape[4], 1
        return weights.to(self.dtype).resolve_neg().contiguous(), (a, g, b, d)

    def vector(self, vector: Tensor | None, shape: tuple[int, int] | None = None) -> int | None:
        """The pointer of a per-channel vector; the kernels are given no other memory than this."""
        if vector is None:
            return None
        rows, columns = shape or self.rows
        if (
            vector.numel() != rows * columns
            or vector.dtype is not self.dtype
            or not vector.is_contiguous()
        ):
            raise ValueError(
                f"batchnorm kernels: a per-channel vector must be a contiguous {self.dtype} of "
                f"{rows * columns} elements; got {vector.dtype} of shape {tuple(vector.shape)}."
            )
        return vector.data_ptr()

    def count(self, count: Tensor | None) -> int | None:
        """The pointer of the groups' counts."""
        return self.vector(count, self.groups)

    def fresh(self) -> Tensor:
        """An output like x."""
        out = like(self.x, self.given)
        if out.nbytes >= HUGE:
            kernels.bn_advise_huge(out.data_ptr(), out.nbytes)
        return out

    def run(self, name: str, given: Mapping[str, Any]) -> None:
        """Calls the kernel with pointers and numbers by their names in C."""
        rest = [given.get(one) for one in _REST[name]]
        check(kernels, getattr(kernels, f"bn_{name}")(*self.first, *rest))
