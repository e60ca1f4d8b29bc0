"""Recordings of the originals, as calls of the reference: see golden/README.md."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

import reference

GOLDEN = Path(__file__).parent / "golden"
RENAMED = {  # contrib's names
    "decay": "momentum",
    "renorm_decay": "renorm_momentum",
    "zero_debias_moving_mean": "zero_debias",
}


@functools.cache
def _recordings():
    with np.load(GOLDEN / "golden.npz") as arrays:
        return json.loads((GOLDEN / "golden.json").read_text())["cases"], dict(arrays)


def golden_cases(*surfaces: str) -> list[dict[str, Any]]:
    """The records of these surfaces, or of all."""
    return [case for case in _recordings()[0] if not surfaces or case["surface"] in surfaces]


def golden_arrays(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of one record, by their name in it."""
    return {name: _recordings()[1][f"{case['name']}/{name}"] for name in case["arrays"]}


def _axis(case):
    return case["kw"].get("axis", 1 if case["kw"].get("data_format") == "NCHW" else -1)


def golden_state(case: dict[str, Any], step: int) -> dict[str, np.ndarray]:
    """The recorded state after so many steps, with our names and shapes."""
    shape, state = reference.Layout(case["shape"], _axis(case)).vector_shape, {}
    for key, rows in golden_arrays(case).items():
        if key.startswith("state/"):
            name = key.removeprefix("state/").replace("biased", "biased_mean")
            row = rows[step].astype(np.float64)
            state[name] = row.reshape(shape) if row.ndim else np.full(shape, row)
    return state


def resolve_golden(case: dict[str, Any]):
    """(options of `batch_norm` in training, parameters, initial state) for a recording.

    Two replicas and activations are the caller's business.
    """
    kw, arrays = case["kw"], golden_arrays(case)
    shape = reference.Layout(case["shape"], _axis(case)).vector_shape
    options: dict[str, Any] = {"training": bool(case["training"]), "axis": _axis(case)}
    for name, value in kw.items():
        name = RENAMED.get(name, name)
        if name in reference.Options.__dataclass_fields__:
            options[name] = value
    options["unbiased_moving_variance"] = case["fused"]
    if not kw.get("trainable", True):
        inference = case["surface"] in ("keras_v2", "keras_sync")
        options["statistics"] = "moving" if inference else "batch"
        options["update_statistics"] = False
    options.update({name: arrays[name] for name in ("mask", "batch_weights") if name in arrays})
    if "adj_scale" in arrays:
        options["adjustment"] = lambda shape: (arrays["adj_scale"], arrays["adj_bias"])
    parameters = {
        name: arrays[name].reshape(shape) for name, _ in reference.PARAMETERS if name in arrays
    }
    return options, parameters, golden_state(case, 0)
