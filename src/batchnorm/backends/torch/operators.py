"""The kernels as PyTorch operators, without derivatives: `torch.ops.batchnorm`.

Every operator takes x with the sizes `[A, G, B, C, D]` that it reads as, weights as
`[A, G or 1, B, 1, D]` with any size 1 instead, and per-channel vectors of G * C elements in the
statistics' type, count of G. Results like x have its shape, gradients that of their vector.

They are defined here, for whoever traces; `kernels` runs them on the CPU, `gpu` on NVIDIA GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.operands import KERNELS, Kernel
from batchnorm.backends.torch.operands import LIKE_X, Operands, arranged, like, statistics_type

# How torch's schemas declare an operand; any other is a vector that may be absent.
_DECLARED = {
    "x": "Tensor", "dy": "Tensor", "residual": "Tensor", "y": "Tensor", "mean": "Tensor",
    "variance": "Tensor", "sum_dy": "Tensor", "sum_dy_xh": "Tensor", "sizes": "SymInt[]",
    "epsilon": "float", "activation": "int", "frozen": "bool",
}  # fmt: skip
_VECTORS = ("mean", "remainder", "variance", "scale", "offset", "live", "sum_dy", "sum_dy_xh")


def _schema(kernel: Kernel) -> str:
    takes = ", ".join(f"{_DECLARED.get(name, 'Tensor?')} {name}" for name in kernel.takes.split())
    gives = ", ".join("Tensor" for _ in kernel.gives.split())
    return f"({takes}) -> " + (f"({gives})" if " " in gives else gives)


def function(name: str, call: Callable[..., Operands]) -> Callable[..., Any]:
    """The kernel as a function of plain tensors.

    `call(x, sizes, weights, alike)` makes the operands of a call; its `run` gets all the others,
    and the results to be written, by their names.
    """
    takes, gives = KERNELS[name].takes.split(), KERNELS[name].gives.split()

    def run(*operands: Any) -> Any:
        given = dict(zip(takes, operands, strict=True))
        alike = {one: given[one] for one in LIKE_X if one in given}
        here: Any = call(given["x"], given["sizes"], given["weights"], alike)
        named: dict[str, Any] = {"frozen": False}
        for one, value in given.items():
            if one in _VECTORS:
                named[one] = here.vector(value)
            elif one == "count":
                named[one] = here.count(value)
            elif one in ("epsilon", "activation", "frozen"):
                named[one] = value
        results = _results(here, gives, given)
        named |= zip(gives, results, strict=True)
        here.run(name, named)
        return results if len(results) > 1 else results[0]

    return run


def _results(here: Any, gives: Sequence[str], given: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The outputs, to be written."""
    like_vector = {"sum_dy": "offset", "sum_dy_xh": "scale"}
    made = []
    for one in gives:
        if one in ("y", "dx", "d_residual"):
            made.append(here.fresh())
        elif one in like_vector:
            vector = given[like_vector[one]]
            made.append(torch.empty_like(given["mean"] if vector is None else vector))
        else:
            shape = here.groups if one == "count" else here.rows
            made.append(here.x.new_empty(shape, dtype=here.dtype))
    return tuple(made)


def _fake(name: str) -> Callable[..., Any]:
    """The shapes of the results, for whoever traces."""
    takes, gives = KERNELS[name].takes.split(), KERNELS[name].gives.split()

    class Shapes:
        def __init__(self, x: Tensor, sizes: Sequence[int]) -> None:
            _, g, _, c, _ = sizes
            self.x, self.given, self.dtype = arranged(x, sizes)[0], x, statistics_type(x)
            self.groups, self.rows = (g, 1), (g, c)

        def fresh(self) -> Tensor:
            return like(self.x, self.given)

    def run(*operands: Any) -> Any:
        given = dict(zip(takes, operands, strict=True))
        results = _results(Shapes(given["x"], given["sizes"]), gives, given)
        return results if len(results) > 1 else results[0]

    return run


def one_by_one(operator: Any) -> Any:
    """A vmap rule: the operator on each slice."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
        slices = [
            operator(
                *(
                    value.select(dim, i) if isinstance(dim, int) else value
                    for value, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(slices[0], Tensor):
            return torch.stack(slices), 0
        return tuple(torch.stack(parts) for parts in zip(*slices, strict=True)), tuple(
            0 for _ in slices[0]
        )

    return rule


registry = torch.library.Library("batchnorm", "DEF")
for _name, _kernel in KERNELS.items():
    registry.define(_name + _schema(_kernel))
    torch.library.register_fake(f"batchnorm::{_name}", _fake(_name))
    torch.library.register_vmap(
        f"batchnorm::{_name}", one_by_one(getattr(torch.ops.batchnorm, _name))
    )
