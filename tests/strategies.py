"""Random calls of `batch_norm` for Hypothesis: every mode together with every other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import batchnorm
from batchnorm import _axes

# Few shapes, pairwise different sizes: compilers cache by shape. Sizes 0 and 1 included.
SHAPES = [
    (4,), (6, 3), (1, 3), (6, 1), (0, 2), (4, 2, 3), (6, 0, 2), (3, 3, 3), (4, 3, 5, 2),
    (6, 1, 2, 3), (4, 3, 1, 2, 5),
]  # fmt: skip


def thorough(examples: int) -> settings:
    """Hypothesis settings; compilation makes single examples slow, so time does not count."""
    return settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


@dataclass
class Call:
    """One call: `options` are static, `given` are arrays (mask, batch_weights)."""

    x: np.ndarray
    dy: np.ndarray
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    options: dict[str, Any]
    given: dict[str, np.ndarray] = field(default_factory=dict)


def random_state(
    rng: np.random.Generator, shape: tuple[int, ...], options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """A state in the middle of a training, with the names and shapes that `init` gives."""
    state = {"moving_mean": rng.normal(size=shape), "moving_variance": rng.uniform(0.5, 2, shape)}
    own = options.get("renorm") and options.get("renorm_momentum", 0.99) is not None
    if own:
        epsilon = options.get("epsilon", 1e-3)
        state["moving_stddev"] = np.sqrt(state["moving_variance"] + epsilon)
        state["renorm_mean"] = rng.normal(size=shape)
        state["renorm_stddev"] = rng.uniform(0.5, 2, shape)
    if options.get("zero_debias"):
        state["biased_mean"] = rng.normal(size=shape)
        state["local_step"] = rng.integers(0, 5, shape).astype(float)
        if options["zero_debias"] == "both":
            name = "biased_stddev" if own else "biased_variance"
            state[name] = rng.uniform(0.5, 2, shape)
    state = {name: value.astype("float32") for name, value in state.items()}
    state["num_updates"] = np.int32(rng.integers(0, 100))
    state["skipped_updates"] = rng.integers(0, 5, shape).astype("int32")
    return state


def random_parameters(
    rng: np.random.Generator, shape: tuple[int, ...], names: tuple[str, ...] = ("gamma", "beta")
) -> dict[str, np.ndarray]:
    return {name: rng.uniform(0.5, 2, shape).astype("float32") for name in names}


def call_on(
    rng: np.random.Generator, x: np.ndarray, names=("gamma", "beta"), given=None, **options: Any
) -> Call:
    """A call with these options on x, from a random state."""
    axis = options.get("axis", -1)
    axes = _axes.resolve(axis if isinstance(axis, int) else tuple(axis), x.ndim, "test")
    shape = tuple(_axes.parameter_shape(x.shape, axes))
    dy = rng.normal(size=x.shape).astype(x.dtype)
    return Call(
        x,
        dy,
        random_parameters(rng, shape, names),
        random_state(rng, shape, options),
        options,
        given or {},
    )


@st.composite
def axes_of(draw: st.DrawFn, rank: int, ghost: bool) -> int | list[int]:
    """One or several axes, negative or not, in any order; without 0 for ghost batches."""
    allowed = range(1 if ghost else 0, rank)
    axes = draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=3, unique=True))
    axes = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    return axes if len(axes) > 1 or draw(st.booleans()) else axes[0]


@st.composite
def weights_of(draw: st.DrawFn, shape: tuple[int, ...], axis: Any, rng: Any, kind: str) -> Any:
    """A mask or weights: a prefix of the dimensions off the axes, some of size 1; or rank(x)."""
    axes = _axes.resolve(axis if isinstance(axis, int) else tuple(axis), len(shape), "test")
    free = [size for i, size in enumerate(shape) if i not in axes]
    rank = draw(st.integers(0, len(free)))
    sizes = [1 if draw(st.booleans()) and size else size for size in free[:rank]]
    if rank == len(free) and draw(st.booleans()):
        left = iter(sizes)
        sizes = [1 if i in axes else next(left) for i in range(len(shape))]
    share = draw(st.sampled_from([0.0, 0.5, 0.7, 1.0]))  # 0 excludes everything
    kept = rng.random(sizes) < share
    return kept if kind == "mask" else (kept * rng.uniform(0.2, 3, sizes)).astype("float32")


@st.composite
def clipping_of(draw: st.DrawFn, channels: int, rng: np.random.Generator) -> dict[str, Any] | None:
    """Some of rmin, rmax and dmax: numbers, arrays per channel, or functions of the step."""
    if draw(st.booleans()):
        return None
    clipping: dict[str, Any] = {}
    for name, low, high in (("rmin", 0.3, 0.9), ("rmax", 1.1, 2.0), ("dmax", 0.0, 1.0)):
        kind = draw(st.sampled_from(["absent", "none", "number", "array", "function"]))
        value = float(rng.uniform(low, high))
        if kind == "none":
            clipping[name] = None
        elif kind == "number":
            clipping[name] = value
        elif kind == "array":
            clipping[name] = rng.uniform(low, high, channels).astype("float32")
        elif kind == "function":
            clipping[name] = lambda step, value=value: value * (1 + 0.01 * step)
    return clipping


@st.composite
def adjustment_of(draw: st.DrawFn, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """A function that returns scale and bias of any shape that broadcasts to x, by the right."""
    pair = []
    for _ in range(2):
        rank = draw(st.integers(0, len(shape)))
        sizes = [size if draw(st.booleans()) else 1 for size in shape[len(shape) - rank :]]
        value = rng.uniform(0.5, 1.5, sizes).astype("float32")
        pair.append(float(value) if not sizes else value)
    return lambda shape: tuple(pair)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call with every option drawn: what the function accepts, it accepts together."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from(SHAPES))
    order = draw(st.sampled_from(["strided", "chunks"]))
    sizes = [v for v in (1, 2, 3, 4, 6) if order == "chunks" or shape[0] % v == 0]
    ghost = draw(st.none() | st.sampled_from(sizes)) if sizes and len(shape) > 1 else None
    axis = draw(axes_of(len(shape), ghost is not None))
    options: dict[str, Any] = {
        "axis": axis,
        "virtual_batch_size": ghost,
        "ghost_order": order,
        "training": draw(st.sampled_from([True, 1, True, False, 0])),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.99, 1.0, None])),
        "epsilon": draw(st.sampled_from([1e-3, 1e-2, 0.5])),
        "renorm": draw(st.booleans()),
        "renorm_momentum": draw(st.sampled_from([0.0, 0.9, None])),
        "unbiased_moving_variance": draw(st.booleans()),
        "pooled_moving_variance": draw(st.booleans()),
        "statistics": draw(st.sampled_from(["auto", "auto", "batch", "moving"])),
        "update_statistics": draw(st.sampled_from(["auto", "auto", True, False])),
        "on_nonfinite": draw(st.sampled_from(["skip", "propagate"])),
        "zero_debias": draw(st.sampled_from([False, True, "mean", "both"])),
        "fused": draw(st.sampled_from([None, False])),
    }
    if options["momentum"] is None:
        options["zero_debias"] = False
    x = (rng.normal(size=shape) * 1.5 + rng.uniform(-3, 3)).astype("float32")
    axes = _axes.resolve(axis if isinstance(axis, int) else tuple(axis), len(shape), "test")
    channels = _axes.product(shape[i] for i in axes)
    if options["renorm"]:
        options["renorm_clipping"] = draw(clipping_of(channels, rng))
    if draw(st.booleans()):
        options["adjustment"] = draw(adjustment_of(shape, rng))
    given = {}
    for name in ("mask", "batch_weights"):
        if draw(st.booleans()):
            given[name] = draw(weights_of(shape, axis, rng, name))
    if "mask" in given and draw(st.booleans()):
        spread = reference_shape(given["mask"], shape, axes)
        x = np.where(np.broadcast_to(spread, shape), x, np.float32(draw(nonfinite)))
    names = draw(st.sampled_from([("gamma", "beta"), ("gamma",), ("beta",), ()]))
    return call_on(rng, x, names, given, **options)


nonfinite = st.sampled_from([np.nan, np.inf, -np.inf])


def reference_shape(mask: np.ndarray, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """A mask, in the shape that broadcasts against x."""
    if mask.ndim == len(shape):
        return mask
    sizes = iter(mask.shape)
    return mask.reshape([1 if i in axes else next(sizes, 1) for i in range(len(shape))])


def initial(engine: Any, x: np.ndarray, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of what `batchnorm.init` returns."""
    return tuple(
        {name: np.asarray(engine.numpy(value)) for name, value in part.items()}
        for part in batchnorm.init(engine.tensor(x), **options)
    )
