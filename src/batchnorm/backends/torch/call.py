"""One call of a kernel on the CPU: pointers and sizes, as C takes them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from batchnorm._native.library import check, load
from batchnorm._native.operands import KERNELS
from batchnorm.backends.torch.operands import CODES as CODES
from batchnorm.backends.torch.operands import Operands

kernels = load()
HUGE = 2 << 20  # bytes of an output whose page faults may cost more than the kernel
# What comes behind the operands that a `Call` holds itself: dtype, sizes, x, what is like it, and
# weights.
_REST = {
    name: kernel.c.split()[kernel.c.split().index("weights") + 1 :]
    for name, kernel in KERNELS.items()
}


@functools.lru_cache(maxsize=1024)
def _sizes(*sizes: int) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


class Call(Operands):
    """The operands of one call, in memory that is alive while it runs."""

    __slots__ = ("first",)

    def __init__(
        self,
        x: Tensor,
        sizes: Sequence[int],
        weights: Tensor | None,
        alike: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(x, sizes, weights, alike)
        self.first: list[Any] = [CODES[x.dtype], _sizes(*self.read), self.x.data_ptr()]
        self.first += [one.data_ptr() for one in self.alike]
        if self.weights is None:
            self.first += (None, None)
        else:
            self.first += (self.weights.data_ptr(), _sizes(*self.wsizes))

    def fresh(self) -> Tensor:
        """An output like x."""
        out = super().fresh()
        if out.nbytes >= HUGE:
            kernels.bn_advise_huge(out.data_ptr(), out.nbytes)
        return out

    def run(self, name: str, given: Mapping[str, Any]) -> None:
        """Calls the kernel with tensors and numbers by their names in C."""
        rest = [
            one.data_ptr() if isinstance(one, Tensor) else one
            for one in map(given.get, _REST[name])
        ]
        check(kernels, getattr(kernels, f"bn_{name}")(*self.first, *rest))
