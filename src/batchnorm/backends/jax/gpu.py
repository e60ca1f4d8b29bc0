"""The functions of `kernels.py` on NVIDIA GPUs: Triton's kernels, launched through jax-triton.

Importing this module imports Triton and jax-triton. Where they are missing, `device` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct
from jax_triton import triton_call
from triton import language as tl

from batchnorm._native.triton import ordered
from batchnorm._native.triton.layout import BLOCK, CHUNK, WARPS, Layout, layout, strides
from batchnorm.backends.jax import results
from batchnorm.backends.jax.meshes import vary, varying, varying_alike


class _Call:
    """What the kernels of one call have in common."""

    def __init__(self, x: Array, weights: Array | None) -> None:
        self.x = x
        self.weights = own = None
        if weights is not None:
            a, g, b, _, d = weights.shape
            own = (a, g, b, d)
            self.weights = weights.astype(results.statistics(x)).reshape(own)
        self.how: Layout = layout(x.shape, x.dtype.itemsize, weights is not None)
        self.steps = strides(x.shape, own)
        self.groups, _, c, d = self.how.sizes
        both = {"C": c, "STATISTIC": tl.float64 if x.dtype == jnp.float64 else tl.float32}
        self.constants = {**self.how.constants, **both, "D": d, "num_warps": self.how.warps}
        self.merging = {**both, "WIDTH": self.how.WIDTH, "SPLITS": self.how.SPLITS}

    def walk(self, *, splits: bool) -> tuple[int, ...]:
        """The numbers that every kernel of x gets."""
        how = self.how
        number = (how.splits,) if splits else ()
        return how.rows, how.tiles, how.per_split, *number, *how.sizes[:2], *self.steps

    @property
    def backward_input(self) -> dict[str, Any]:
        """The constants of this kernel.

        jax-triton (0.3.1) has no limit of registers to set; the compiler gives many warps fewer
        than they take, and spills.
        """
        warps = WARPS if self.weights is None else self.how.warps // 2
        return {**self.constants, "SPLITS": self.how.SPLITS, "num_warps": warps}

    def partial(self, number: int) -> list[ShapeDtypeStruct]:
        """Room for what each split leaves, so many float64 for each channel."""
        size = 2 * number * self.how.splits * self.how.vectors
        return [ShapeDtypeStruct((size,), jnp.dtype("float32"))]


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    operands: Sequence[Array | None],
    numbers: Sequence[float],
    shapes: list[ShapeDtypeStruct],
    num_warps: int = WARPS,
    **constants: Any,
) -> list[Array]:
    """The results of a kernel of `ordered.py`."""
    present = [one for one in operands if one is not None]
    given = iter(varying_alike(present))
    placed = [None if one is None else next(given) for one in operands]
    absent = sum(1 << i for i, one in enumerate(placed) if one is None)
    out = triton_call(
        *(placed[0] if one is None else one for one in placed),
        *numbers,
        kernel=kernel,
        out_shape=shapes,
        grid=grid,
        num_warps=num_warps,
        ABSENT=absent,
        **constants,
    )
    axes = frozenset().union(*map(varying, present))
    return [vary(one, axes) for one in out] if axes else list(out)


def _partial_moments(call: _Call) -> Array:
    (partial,) = _launch(
        ordered.partial_moments,
        call.how.grid,
        (call.x, call.weights),
        call.walk(splits=False),
        call.partial(3),
        CHUNK=CHUNK,
        **call.constants,
    )
    return partial


def moments(x: Array, weights: Array | None) -> list[Array]:
    if x.size == 0:
        return _no_moments(x, weights)
    call = _Call(x, weights)
    return _launch(
        ordered.merge,
        (call.how.programs,),
        [_partial_moments(call)],
        (call.groups, call.how.splits),
        results.moments(x),
        **call.merging,
    )


def standardize(
    x: Array,
    weights: Array | None,
    given: Any,
    epsilon: float,
    activation: int,
    residual: Array | None = None,
) -> Array:
    if x.size == 0:
        return x
    call = _Call(x, weights)
    mean, remainder, variance, _, scale, offset, _ = given
    (y,) = _launch(
        ordered.standardize_given,
        call.how.grid,
        (x, residual, call.weights, mean, remainder, variance, scale, offset),
        (*call.walk(splits=True), epsilon),
        [results.like(x)],
        RELU=activation == 1,
        SPLITS=call.how.SPLITS,
        **call.constants,
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
    if x.size == 0:
        return [x, *_no_moments(x, weights)]
    call = _Call(x, weights)
    return _launch(
        ordered.standardize_merging,
        call.how.grid,
        (x, residual, call.weights, _partial_moments(call), scale, offset),
        (*call.walk(splits=True), epsilon),
        [results.like(x), *results.moments(x)],
        RELU=activation == 1,
        SPLITS=call.how.SPLITS,
        **call.constants,
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
    if x.size == 0:
        return [x, *_no_vectors(x, 2)]
    call = _Call(x, weights)
    mean, remainder, variance, count, scale, offset, live = given
    partial = _partial_sums(call, dy, given, epsilon, activation)
    vectors = (count, mean, remainder, variance, scale, offset, live)
    return _launch(
        ordered.backward_merging,
        call.how.grid,
        (x, dy, call.weights, *vectors, partial),
        (*call.walk(splits=True), epsilon),
        [results.like(x), *results.vectors(x, 2)],
        RELU=activation == 1,
        FROZEN=frozen,
        **call.backward_input,
    )


def _partial_sums(call: _Call, dy: Array, given: Any, epsilon: float, activation: int) -> Array:
    mean, remainder, variance, _, scale, offset, _ = given
    (partial,) = _launch(
        ordered.partial_sums,
        call.how.grid,
        (call.x, dy, call.weights, mean, remainder, variance, scale, offset),
        (*call.walk(splits=False), epsilon),
        call.partial(2),
        RELU=activation == 1,
        CHUNK=CHUNK,
        **call.constants,
    )
    return partial


def backward_sums(
    x: Array, dy: Array, weights: Array | None, given: Any, epsilon: float, activation: int
) -> list[Array]:
    if x.size == 0:
        return _no_vectors(x, 2)
    call = _Call(x, weights)
    _, remainder, variance, *_ = given
    return _launch(
        ordered.merge_sums,
        (call.how.programs,),
        (_partial_sums(call, dy, given, epsilon, activation), remainder, variance),
        (call.groups, call.how.splits, epsilon),
        results.vectors(x, 2),
        **call.merging,
    )


def backward_input(
    x: Array,
    dy: Array,
    weights: Array | None,
    given: Any,
    sums: Sequence[Array],
    epsilon: float,
    activation: int,
) -> Array:
    if x.size == 0:
        return x
    call = _Call(x, weights)
    mean, remainder, variance, count, scale, offset, live = given
    vectors = (count, mean, remainder, variance, scale, offset, live)
    (dx,) = _launch(
        ordered.backward_given,
        call.how.grid,
        (x, dy, call.weights, *vectors, *sums),
        (*call.walk(splits=True), epsilon),
        [results.like(x)],
        RELU=activation == 1,
        FROZEN=False,
        **call.backward_input,
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
    old = {name: state[name] for name in names if name in state}
    g, c = moments[0].shape
    if g * c == 0:
        return old | {name: one + 1 for name, one in old.items() if name == "num_updates"}
    absent = ShapeDtypeStruct((0,), jnp.dtype("int32"))
    shapes = [
        ShapeDtypeStruct(old[name].shape, old[name].dtype) if name in old else absent
        for name in names
    ]
    new = _launch(
        ordered.remembered,
        (-(-g * c // BLOCK),),
        (*moments, *(old.get(name) for name in names)),
        (momentum,),
        shapes,
        VECTORS=g * c,
        C=c,
        UNBIASED=unbiased,
        PROPAGATE=propagate,
        BLOCK=BLOCK,
    )
    return {name: one for name, one in zip(names, new, strict=True) if name in old}


# An x without elements: groups without channels have values too.


def _no_vectors(x: Array, number: int) -> list[Array]:
    return [jnp.zeros(one.shape, one.dtype) for one in results.vectors(x, number)]


def _no_moments(x: Array, weights: Array | None) -> list[Array]:
    a, g, b, _, d = x.shape
    given = jnp.ones((1, 1, 1, 1, 1)) if weights is None else weights
    spread = jnp.broadcast_to(given.astype(results.statistics(x)), (a, g, b, 1, d))
    return [*_no_vectors(x, 3), jnp.sum(spread, (0, 2, 4)).reshape(g, 1)]
