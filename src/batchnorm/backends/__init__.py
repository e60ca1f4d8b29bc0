"""One folder per framework: a few array operations, and the big steps by the native kernels.

Each folder has the same files. `operations` are array operations under common names; `kernels`
binds the native kernels, `derivatives` gives them their derivatives; `replicas` talks to other
processes or devices; `place` knows where it is called, and whether the kernels run there. The
folder itself is what the core gets as `ops`, with the names of PROTOCOL, of equal signatures.
`composite.py` writes the big steps in array operations, for all of them; `fused.py` is what the
kernels of all frameworks share.

The core picks a backend from the tensor it is given, so that one process can use all three.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NoReturn

PROTOCOL = (
    # the big steps: `steps.Steps`, in array operations; `fused.Steps` for x, or why there are none
    "COMPOSITE", "kernels_for",
    # `host`, where a call costs more than the arithmetic of a vector, and vectors there; or None
    "HOST", "on_host",
    # who is calling, and where
    "recomputing", "traced", "unavailable", "why_not",
    # replicas
    "aligned", "all_gather", "find_replicas",
    # array operations; `sum`, and `long_sum` and `mean` of many numbers, keep the dimensions
    "add_product", "all", "asarray", "broadcast_to", "cast", "concatenate", "dtype", "equal",
    "expm1", "fill", "full", "indices", "is_tensor", "isfinite", "left_out", "log", "long_sum",
    "maximum", "mean", "minimum", "near", "ones_like", "pin", "product", "products", "relu",
    "reshape", "rsqrt", "runtime_shape", "shape", "sqrt", "stop_gradient", "stop_where", "subtract",
    "sum", "transpose", "where", "zeros_like",
    # what programs decide: a scalar's value, an error, a branch
    "check", "concrete", "cond",
    # a vector as `[R, C]`, or `(C,)` where that broadcasts like it; a row as the kernels take it
    "row", "per_channel",
)  # fmt: skip

CONVERSIONS = {
    "tensorflow": "tensorflow.convert_to_tensor",
    "jax": "jax.numpy.asarray",
    "torch": "torch.as_tensor",
}


def backend_of(x: Any, *beside: Mapping[str, Any]) -> ModuleType:
    """The backend whose tensor x is.

    Args:
        beside: tensors that came with it. They tell an error which framework to speak of.

    Raises:
        TypeError: x is not a tensor of a supported framework.
    """
    return _found(x) or _refuse(x, *beside)


def _refuse(x: Any, *beside: Mapping[str, Any]) -> NoReturn:
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise TypeError(
        f"batchnorm: x must be a TensorFlow, JAX or PyTorch tensor; got {kind}. Convert it first, "
        f"for example with {_conversion(x, beside)}."
    )


def _found(x: Any) -> ModuleType | None:
    # A framework that was never imported cannot have made x, so none is imported here.
    loaded = sys.modules
    if "torch" in loaded and isinstance(x, loaded["torch"].Tensor):
        # The first call may be one that torch compiles: it follows an import statement, and would
        # hold `loaded` to what it was before that.
        if not loaded["torch"].compiler.is_compiling() and "batchnorm.backends.torch" in loaded:
            return loaded["batchnorm.backends.torch"]
        from batchnorm.backends import torch

        return torch
    if "jax" in loaded and isinstance(x, loaded["jax"].Array):
        return _backend("jax")
    if "tensorflow" in loaded:
        tensorflow = _backend("tensorflow")
        if tensorflow.is_tensor(x):
            return tensorflow
    return None


def _conversion(x: Any, beside: tuple[Mapping[str, Any], ...]) -> str:
    """What makes a tensor of x, in the caller's framework as far as anything tells which."""
    named = type(x).__module__.split(".")[0]
    if named in CONVERSIONS:
        return CONVERSIONS[named]
    for tensor in (one for tensors in beside for one in tensors.values()):
        found = _found(tensor)
        if found is not None:
            return CONVERSIONS[found.__name__.split(".")[-1]]
    loaded = [name for name in CONVERSIONS if name in sys.modules] or list(CONVERSIONS)
    *most, last = (CONVERSIONS[name] for name in loaded)
    return f"{', '.join(most)} or {last}" if most else last


def recorder_of(x: Any) -> Any:
    """What records a call for an x that stands for a tensor, torch.fx's Proxy; None for others."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.fx.Proxy):
        return None
    return importlib.import_module("batchnorm.backends.torch.symbolic").record


def _backend(framework: str) -> ModuleType:
    name = f"batchnorm.backends.{framework}"
    return sys.modules[name] if name in sys.modules else importlib.import_module(name)


def why_not(subject: Any) -> str | None:
    """Why there is no fused path here, in a sentence; None where there is one.

    Args:
        subject: a framework ("tensorflow", "jax" or "torch"), or a tensor of one, which may lie on
            a device that has none.

    Raises:
        TypeError, ValueError: the subject is neither.
    """
    if not isinstance(subject, str):
        return backend_of(subject).why_not(subject)
    if subject not in ("tensorflow", "jax", "torch"):
        raise ValueError(
            f"why_not: subject must be tensorflow, jax, torch or one of their tensors; "
            f"got {subject!r}."
        )
    reason: str | None = _backend(subject).unavailable()
    return reason
