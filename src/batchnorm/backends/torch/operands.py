"""What a kernel is given of PyTorch's tensors, checked, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from batchnorm._native.library import DTYPES

LIKE_X = ("dy", "residual", "y")  # of what a kernel reads, in the order of its arguments
CODES = {getattr(torch, name): code for name, code in DTYPES.items()}


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


class Operands:
    """One call of a kernel: its big operands in an order that it reads, alive while it runs.

    Attributes:
        x, alike, weights: the tensors, laid out as they are read; weights may be None.
        read: the sizes `[A, G, B, C, D]` that they read as.
        wsizes: those of the weights, `[A, G, B, D]`, each the full one or 1.
        dtype: of the statistics.

    Raises:
        ValueError: an operand is not what the kernel would read.
    """

    __slots__ = (
        "alike", "dtype", "given", "groups", "read", "rows", "sizes", "weights", "wsizes", "x"
    )  # fmt: skip

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
        self.read = (a, g, b * d, c, 1) if native else (a, g, b, c, d)
        self.alike = [self._like_x(name, one, native) for name, one in (alike or {}).items()]
        self.weights: Tensor | None = None
        self.wsizes: tuple[int, ...] = ()
        if weights is not None:
            self.weights, self.wsizes = self._dense_weights(weights, native)

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

    def vector(self, vector: Tensor | None, shape: tuple[int, int] | None = None) -> Tensor | None:
        """A per-channel vector; the kernels are given no other memory than this."""
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
        return vector

    def count(self, count: Tensor | None) -> Tensor | None:
        """The groups' counts."""
        return self.vector(count, self.groups)

    def fresh(self) -> Tensor:
        """An output like x."""
        return like(self.x, self.given)
