"""One batch over several replicas: cases in every mode, and what one process makes of all the rows.

Engines run `run(case, engine, rank, ...)` on each replica; tests hold the parts that come back to
`reference.batch_norm` of the whole batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import engines
import reference
from strategies import random_state

ROWS = {1: (9,), 2: (6, 3), 4: (5, 3, 0, 1)}  # nine, by the number of replicas
GHOST = {1: (8,), 2: (4, 4), 4: (4, 4, 4, 4)}
UNEQUAL = {1: (8,), 2: (2, 6), 4: (4, 2, 0, 6)}  # as many ghost batches as half of it, or none
EQUAL = {1: (8,), 2: (4, 4), 4: (2, 2, 2, 2)}


def vectors(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """An adjustment with a value for each channel of the last axis."""
    return np.linspace(0.8, 1.2, shape[-1]), np.linspace(-0.2, 0.3, shape[-1])


CLIPPING = {"rmax": 1.5, "rmin": 0.7, "dmax": 0.5}
# name: (sizes behind the batch, options, what else there is)
MODES: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "plain": ((3,), {}, {}),
    "channels last": ((5, 4, 3), {}, {}),
    "channels first": ((3, 5, 4), {"axis": 1}, {}),
    "two axes": ((3, 5, 4), {"axis": [1, 3]}, {}),
    "mean 1e4": ((6, 3), {}, {"offset": 1e4}),
    "mask": ((6, 3), {}, {"mask": True}),
    "mask with NaN under it": ((6, 3), {}, {"mask": True, "nan": True}),
    "weights": ((6, 3), {}, {"weights": True}),
    "mask, weights and axis 1": ((3, 6), {"axis": 1}, {"mask": True, "weights": True}),
    "renorm": ((6, 3), {"renorm": True, "renorm_clipping": CLIPPING}, {}),
    "renorm and mask": ((6, 3), {"renorm": True}, {"mask": True}),
    "ghost": ((6, 3), {"virtual_batch_size": 2}, {}),
    "ghost, renorm and weights": (
        (6, 3),
        {"virtual_batch_size": 2, "renorm": True},
        {"weights": True},
    ),
    "ghost in chunks": ((6, 3), {"virtual_batch_size": 2, "ghost_order": "chunks"}, {}),
    "adjustment": ((6, 3), {"adjustment": vectors}, {}),
    "unbiased": ((6, 3), {"unbiased_moving_variance": True}, {}),
    "zero debias": ((6, 3), {"zero_debias": "both"}, {}),
    "float64": ((6, 3), {}, {"dtype": "float64"}),
    "float16": ((6, 3), {}, {"dtype": "float16"}),
    "bfloat16": ((6, 3), {}, {"dtype": "bfloat16"}),
    "batch without update": ((6, 3), {"update_statistics": False}, {}),
    "update without batch": ((6, 3), {"statistics": "moving"}, {}),
    "inference": ((6, 3), {"training": False}, {}),
    "everything masked": ((6, 3), {}, {"mask": False}),
    "NaN on one replica": ((6, 3), {}, {"nan": True}),
    "unequal ghost": ((6, 3), {"virtual_batch_size": 2}, {"rows": UNEQUAL}),
    "unequal ghost and axis 1": ((3, 6), {"virtual_batch_size": 2, "axis": 1}, {"rows": UNEQUAL}),
    "unequal ghost, renorm, unbiased and weights": (
        (6, 3),
        {"virtual_batch_size": 2, "renorm": True, "unbiased_moving_variance": True},
        {"rows": UNEQUAL, "weights": True},
    ),
    "unequal ghost, pooled, mask with NaN under it": (
        (6, 3),
        {"virtual_batch_size": 2, "pooled_moving_variance": True},
        {"rows": UNEQUAL, "mask": True, "nan": True},
    ),
}
NAMES = tuple(MODES)
TOLERANCE = {"float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass
class Case:
    """A batch and how it lies on the replicas; `options` are those of each replica."""

    name: str
    rows: tuple[int, ...]
    options: dict[str, Any]
    x: np.ndarray
    dy: np.ndarray
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    given: dict[str, np.ndarray] = field(default_factory=dict)
    dtype: str = "float32"

    def part(self, array: np.ndarray, rank: int) -> np.ndarray:
        start = sum(self.rows[:rank])
        return array[start : start + self.rows[rank]]


def case(name: str, replicas: int, rows: Mapping[int, tuple[int, ...]] | None = None) -> Case:
    """A case of MODES, the same numbers wherever it is called."""
    tail, options, more = MODES[name]
    rng = np.random.default_rng(NAMES.index(name))
    usual = more.get("rows") or (GHOST if "virtual_batch_size" in options else ROWS)
    chosen = (rows or usual)[replicas]
    shape = (sum(chosen), *tail)
    dtype = more.get("dtype", "float32")
    wide = "float64" if dtype == "float64" else "float32"
    x = rng.normal(more.get("offset", 3.0), 1.0, shape).astype(wide)
    axis = options.get("axis", -1)
    vector = reference.Layout(shape, axis).vector_shape
    given: dict[str, np.ndarray] = {}
    if "mask" in more:
        given["mask"] = (rng.random(shape[:1]) < 0.6) & more["mask"]
    if "weights" in more:
        given["batch_weights"] = rng.uniform(0.2, 2, shape[:1]).astype("float32")
    if "nan" in more:
        x[-1, ..., 0] = np.nan
        if "mask" in given:
            given["mask"][-1] = False
    state = random_state(rng, vector, options)
    state = {k: v.astype(wide) if v.dtype == np.float32 else v for k, v in state.items()}
    return Case(
        name,
        chosen,
        {"training": True, **options},
        x,
        rng.normal(size=shape).astype(wide),
        {key: rng.uniform(0.5, 2, vector).astype(wide) for key in ("gamma", "beta")},
        state,
        given,
        dtype,
    )


def expected(one: Case) -> reference.Result:
    """What one process makes of the whole batch, in float64.

    Group j of all replicas is one ghost batch (semantics of the originals): the same strided
    groups of the whole batch, larger. Replicas with fewer groups are filled with masked rows.
    """
    options = dict(one.options)
    places, given = slice(None), one.given
    padded = lambda array: array  # noqa: E731
    if size := options.get("virtual_batch_size"):
        options["virtual_batch_size"] = size * len(one.rows)
    if options.get("ghost_order") == "chunks":
        places, padded = np.argsort(by_chunks(one)), lambda array: array[by_chunks(one)]
    elif size:
        places, padded = there(one).reshape(-1), lambda array: laid_out(one, array)
        mask = given.get("mask", np.ones(sum(one.rows), bool))
        given = {name: padded(array) for name, array in {**given, "mask": mask}.items()}

    def wide(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in arrays.items()}

    x, dy = (padded(rounded(array, one.dtype)) for array in (one.x, one.dy))
    result = reference.batch_norm(
        x, wide(one.parameters), wide(one.state), dy=dy, **options, **given
    )
    assert result.dx is not None
    return result._replace(y=result.y[places], dx=result.dx[places])


def by_chunks(one: Case) -> np.ndarray:
    """The rows of all replicas' first chunks, of their second ones, and so on."""
    shape = (len(one.rows), -1, one.options["virtual_batch_size"])
    return np.arange(sum(one.rows)).reshape(shape).swapaxes(0, 1).reshape(-1)


def there(one: Case) -> np.ndarray:
    """Which rows are a replica's own where all have as many as the largest: `[replicas, rows]`.

    Its rows come first; with ghost batches, its groups do, each with all of its rows.
    """
    size = one.options.get("virtual_batch_size") or 1
    groups = max(one.rows) // size
    each = [np.arange(groups) < rows // size for rows in one.rows]
    return np.stack([np.tile(own, size) for own in each])


def laid_out(one: Case, array: np.ndarray) -> np.ndarray:
    """The rows of an array where `there` says, zeros elsewhere: `[replicas * rows, ...]`."""
    places = there(one).reshape(-1)
    result = np.zeros((places.size, *array.shape[1:]), array.dtype)
    result[places] = array
    return result


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """As the type holds it."""
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16).astype("float64")
    return array.astype(dtype).astype("float64")


def run(
    one: Case,
    engine: engines.Engine,
    rank: int,
    *,
    mode: str = "eager",
    fused: bool | None = None,
    synchronized: Any = True,
) -> dict[str, Any]:
    """What a replica makes of its part: see `engines.stepper`."""
    options = {**one.options, "fused": fused, "synchronized": synchronized}
    if "adjustment" in options:
        options["adjustment"] = lambda shape: tuple(
            engine.tensor(each.astype(one.x.dtype)) for each in vectors(one.x.shape)
        )
    training = options.pop("training")
    with engine.precision(one.dtype):
        step = engines.stepper(engine, mode, training=training, **options)
        return step(
            one.part(one.x, rank),
            one.parameters,
            one.state,
            dy=one.part(one.dy, rank),
            dtype=one.dtype,
            **{name: one.part(array, rank) for name, array in one.given.items()},
        )


def check(one: Case, parts: Sequence[dict[str, Any]], tolerance: float | None = None) -> None:
    """Values, gradients and state of all replicas are those of one process."""
    want = expected(one)
    assert want.dx is not None
    assert want.gradients is not None
    tolerance = tolerance or TOLERANCE.get(one.dtype, 1e-6)

    def close(got: Any, want: np.ndarray, what: str, tolerance: float = tolerance) -> None:
        scale = max(1.0, float(np.nanmax(np.abs(want), initial=0)))
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance * scale, err_msg=f"{one.name}: {what}"
        )

    for what, array in (("y", want.y), ("dx", want.dx)):
        close(np.concatenate([part[what] for part in parts]), array, what)
    for name, array in want.gradients.items():
        close(sum(part[name] for part in parts), array, f"d {name}", 3 * tolerance)
    for name, array in want.state.items():
        for part in parts:
            close(part["state"][name], array, name, min(tolerance, 1e-6))
    for part, name in itertools.product(parts, want.state):
        mine, first = part["state"][name], parts[0]["state"][name]
        assert np.array_equal(mine, first, equal_nan=True), f"{one.name}: {name} differs"


def groups_of(one: Case) -> int:
    """How many rows its moments have."""
    size = one.options.get("virtual_batch_size")
    return max(one.rows) // size if size else 1


def messages_of(one: Case) -> list[int]:
    """How many numbers a replica sends for a case: docs/distributed.md."""
    channels, groups = one.parameters["gamma"].size, groups_of(one)
    rows = one.options.get("axis", -1) == [1, 3] and one.x.shape[1]  # a group for each of axis 1
    groups, channels = (rows, channels // rows) if rows else (groups, channels)
    forward, backward = groups * (3 * channels + 1), groups * 2 * channels
    sent = {"inference": [], "update without batch": [forward]}
    return sent.get(one.name, [forward, backward])


def width(one: Case) -> int:
    """Bytes of a number that is sent."""
    return 8 if one.dtype == "float64" else 4
