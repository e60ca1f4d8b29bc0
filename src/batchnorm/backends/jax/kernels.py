"""The kernels as JAX functions, without derivatives: calls of XLA FFI targets on the CPU.

x is the view `[A, G, B, C, D]`, weights `[A, G or 1, B, 1, D]` with any size 1 instead, per-channel
vectors `[G, C]` in the statistics' type, count `[G, 1]`; None is absent.

Importing this module registers the targets; it raises `KernelsUnavailable` where there are none.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from batchnorm._native.library import KernelsUnavailable, load, path_of
from batchnorm.backends.jax import results
from batchnorm.backends.jax.meshes import vary, varying, varying_alike


def _ffi_major() -> int | None:
    """The major version of XLA's FFI in this JAX, by the header that it ships; None without one.

    XLA (JAX 0.10.2) asks a handler for its version; ours answers with the one that it is asked by,
    so it is held against the layout that kernels/bindings/jax.cc declares here.
    """
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    found = (
        re.search(r"#define XLA_FFI_API_MAJOR (\d+)", header.read_text())
        if header.exists()
        else None
    )
    return None if found is None else int(found[1])


load()  # its symbols are what the handlers call
if (_major := _ffi_major()) != 0:
    raise KernelsUnavailable(
        f"The kernels' binding knows version 0 of XLA's FFI; got {_major} in jax {jax.__version__}."
    )
try:
    _handlers = ctypes.CDLL(str(path_of("libbatchnorm_jax")))
except OSError as error:
    raise KernelsUnavailable(f"The JAX binding cannot be loaded: {error}.") from error
for _name in (
    "moments", "standardize", "forward", "backward", "backward_sums", "backward_input",
    "standardize_add", "forward_add", "remember",
):  # fmt: skip
    jax.ffi.register_ffi_target(
        f"batchnorm_{_name}",
        jax.ffi.pycapsule(getattr(_handlers, f"batchnorm_{_name}")),
        platform="cpu",
    )


def _absent(x: Array, value: Array | None) -> Array:
    return jnp.zeros((0,), results.statistics(x)) if value is None else value


def _weights(x: Array, weights: Array | None) -> Array:
    if weights is None:
        return jnp.zeros((0, 0, 0, 0), results.statistics(x))
    a, g, b, _, d = weights.shape
    return weights.astype(results.statistics(x)).reshape(a, g, b, d)


def _call(name: str, shapes: list[Any], operands: list[Array], **attributes: Any) -> Any:
    """The target's results; x, and what is like it, travels without dimensions of size 1.

    With them, XLA (0.10.2 on the CPU) copies bfloat16 before the call: kernels/bindings/jax.cc.
    """
    view = operands[0].shape
    kept = tuple(size for size in view if size != 1)
    present = sum(1 << i for i, size in enumerate(view) if size != 1)
    call = jax.ffi.ffi_call(
        f"batchnorm_{name}",
        [one.update(shape=kept) if one.shape == view else one for one in shapes],
        vmap_method="sequential",
    )
    given = [one.reshape(kept) if one.shape == view else one for one in varying_alike(operands)]
    out = call(*given, present=present, **attributes)
    out = [one.reshape(like.shape) for one, like in zip(out, shapes, strict=True)]
    axes = frozenset().union(*map(varying, operands))
    return [vary(one, axes) for one in out] if axes else out


def moments(x: Array, weights: Array | None) -> list[Array]:
    return _call("moments", results.moments(x), [x, _weights(x, weights)])


def standardize(
    x: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    residual: Array | None = None,
) -> Array:
    name, first = ("standardize", [x]) if residual is None else ("standardize_add", [x, residual])
    (y,) = _call(
        name,
        [results.like(x)],
        [*first, _weights(x, weights), *(_absent(x, one) for one in given)],
        epsilon=epsilon,
        activation=activation,
    )
    return y


def forward(
    x: Array,
    weights: Array | None,
    scale: Array | None,
    offset: Array | None,
    epsilon: float,
    activation: int,
    residual: Array | None = None,
) -> list[Array]:
    name, first = ("forward", [x]) if residual is None else ("forward_add", [x, residual])
    return _call(
        name,
        [results.like(x), *results.moments(x)],
        [*first, _weights(x, weights), _absent(x, scale), _absent(x, offset)],
        epsilon=epsilon,
        activation=activation,
    )


def backward(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    frozen: bool,
) -> list[Array]:
    return _call(
        "backward",
        [results.like(x), *results.vectors(x, 2)],
        [x, dy, _weights(x, weights), *(_absent(x, one) for one in given)],
        epsilon=epsilon,
        activation=activation,
        frozen=frozen,
    )


def backward_sums(
    x: Array, dy: Array, weights: Array | None, given: Any, epsilon: float, activation: int
) -> list[Array]:
    mean, remainder, variance, _, scale, offset, _ = given
    vectors = (mean, remainder, variance, scale, offset)
    return _call(
        "backward_sums",
        results.vectors(x, 2),
        [x, dy, _weights(x, weights), *(_absent(x, one) for one in vectors)],
        epsilon=epsilon,
        activation=activation,
    )


def backward_input(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    sums: list[Array],
    epsilon: float,
    activation: int,
) -> Array:
    (dx,) = _call(
        "backward_input",
        [results.like(x)],
        [x, dy, _weights(x, weights), *(_absent(x, one) for one in given), *sums],
        epsilon=epsilon,
        activation=activation,
        frozen=False,
    )
    return dx


def remember(
    moments: Sequence[Array],
    state: Mapping[str, Array],
    momentum: float,
    unbiased: bool,
    propagate: bool,
) -> dict[str, Array]:
    """The moving averages and counters after a step; a counter may be absent."""
    names = ("moving_mean", "moving_variance", "skipped_updates", "num_updates")
    old = [state[name] if name in state else jnp.zeros((0,), jnp.int32) for name in names]
    call = jax.ffi.ffi_call(
        "batchnorm_remember",
        [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in old],
        vmap_method="sequential",
    )
    new = call(*moments, *old, momentum=momentum, unbiased=unbiased, propagate=propagate)
    return {name: one for name, one in zip(names, new, strict=True) if name in state}
