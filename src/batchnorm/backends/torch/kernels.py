"""The kernels as PyTorch operators, without derivatives: `torch.ops.batchnorm`.

Every operator takes x with the sizes `[A, G, B, C, D]` that it reads as, weights as
`[A, G or 1, B, 1, D]` with any size 1 instead, and per-channel vectors of G * C elements in the
statistics' type, count of G. Results like x have its shape, gradients that of their vector.

Importing this module defines the operators; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchnorm._native.library import check
from batchnorm._native.operands import KERNELS, Kernel
from batchnorm.backends.torch import call
from batchnorm.backends.torch.call import LIKE_X, Call, arranged, like, statistics_type

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


def _operator(name: str) -> Callable[..., Any]:
    """The kernel as a function of plain tensors."""
    takes, gives = KERNELS[name].takes.split(), KERNELS[name].gives.split()

    def run(*operands: Any) -> Any:
        given = dict(zip(takes, operands, strict=True))
        alike = {one: given[one] for one in LIKE_X if one in given}
        here = Call(given["x"], given["sizes"], given["weights"], alike)
        pointers: dict[str, Any] = {"frozen": False}
        for one, value in given.items():
            if one in _VECTORS:
                pointers[one] = here.vector(value)
            elif one == "count":
                pointers[one] = here.count(value)
            elif one in ("epsilon", "activation", "frozen"):
                pointers[one] = value
        results = _results(here, gives, given)
        pointers |= {one: out.data_ptr() for one, out in zip(gives, results, strict=True)}
        here.run(name, pointers)
        return results if len(results) > 1 else results[0]

    return run


def _results(here: Call, gives: Sequence[str], given: Mapping[str, Any]) -> tuple[Tensor, ...]:
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
        shapes: Any = Shapes(given["x"], given["sizes"])
        results = _results(shapes, gives, given)
        return results if len(results) > 1 else results[0]

    return run


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


# What the operators run; callable on plain tensors too, past torch's dispatcher.
kernels: dict[str, Callable[..., Any]] = {}
_registry = torch.library.Library("batchnorm", "DEF")
for _name, _kernel in KERNELS.items():
    kernels[_name] = _operator(_name)
    _registry.define(_name + _schema(_kernel))
    _registry.impl(_name, kernels[_name], "CPU")
    torch.library.register_fake(f"batchnorm::{_name}", _fake(_name))
    torch.library.register_vmap(
        f"batchnorm::{_name}", one_by_one(getattr(torch.ops.batchnorm, _name))
    )


def borrow_threads() -> bool:
    """Runs the kernels on torch's own OpenMP team: two spinning teams slow each other down."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    return any(call.kernels.bn_borrow_openmp(str(path).encode()) for path in bundled)


borrow_threads()
