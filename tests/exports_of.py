"""Layers to export, what they must compute, and the process that loads what was exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WORKER = Path(__file__).parent / "workers" / "load_exports.py"
EPSILON = 1e-3
WRITTEN, LOADED = 5, 3  # batches: no export may know its size
# the largest difference, relative to the largest value
BARS = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Case:
    """A layer, behind a convolution where `filters` says so; sizes are those behind the batch."""

    sizes: tuple[int, ...]
    axis: Any
    scale: bool = True
    center: bool = True
    dtype: str = "float32"
    convolution: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[int, ...]:
        given = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(sorted(one % (len(self.sizes) + 1) for one in given))

    @property
    def vector_shape(self) -> tuple[int, ...]:
        """Of gamma, beta and statistics."""
        shape = (0, *self.sizes)
        if len(self.axes) == 1:
            return (shape[self.axes[0]],)
        return tuple(size if i in self.axes else 1 for i, size in enumerate(shape))

    @property
    def rank(self) -> int:
        """Of the convolution."""
        return len(self.sizes) - 1

    def vectors(self, seed: int = 0) -> dict[str, np.ndarray]:
        """gamma, beta, moving_mean and moving_variance."""
        rng = np.random.default_rng(seed)
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        given = {name: rng.uniform(0.5, 2, self.vector_shape).astype("float32") for name in names}
        given["beta"] -= 1
        return given

    def inputs(self, batch: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        return rng.normal(1.0, 2.0, (batch, *self.sizes)).astype("float32")

    def expected(self, x: np.ndarray) -> np.ndarray:
        """The layer of what the convolution has made of the inputs, in float64."""
        given = self.vectors()
        spread = [size if i in self.axes else 1 for i, size in enumerate(x.shape)]
        vectors = {name: one.astype("float64").reshape(spread) for name, one in given.items()}
        y = (x - vectors["moving_mean"]) / np.sqrt(vectors["moving_variance"] + EPSILON)
        if self.scale:
            y = y * vectors["gamma"]
        if self.center:
            y = y + vectors["beta"]
        return np.maximum(y, 0) if self.options.get("activation") == "relu" else y


CASES = {
    "dense": Case((6,), -1),
    "dense, no gamma": Case((6,), -1, scale=False),
    "rank 3, axis 1": Case((4, 7), 1, convolution=True),
    "rank 3, axis -1, no beta": Case((7, 4), -1, center=False, convolution=True),
    "rank 4, axis 1": Case((4, 6, 5), 1, convolution=True),
    "rank 4, axis 1, no gamma, no beta": Case((4, 6, 5), 1, scale=False, center=False),
    "rank 4, axis -1": Case((6, 5, 4), -1, convolution=True),
    "rank 4, axis -1, no gamma": Case((6, 5, 4), -1, scale=False),
    "rank 4, axis -1, no beta": Case((6, 5, 4), -1, center=False),
    "rank 4, axes 1 and -1": Case((3, 5, 2), (1, -1)),
    "rank 5, axis 1": Case((4, 5, 3, 6), 1, convolution=True),
    "rank 5, axis -1": Case((5, 3, 6, 4), -1, convolution=True),
    "renorm": Case((4, 6, 5), 1, options={"renorm": True}),
    "ghost": Case((6, 5, 4), -1, options={"virtual_batch_size": 2}),
    "relu, axis 1": Case((4, 6, 5), 1, convolution=True, options={"activation": "relu"}),
    "relu, axis -1": Case((6, 5, 4), -1, options={"activation": "relu"}),
    "float16": Case((4, 6, 5), 1, dtype="float16"),
    "bfloat16": Case((7, 4), -1, dtype="bfloat16"),
}


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest, relative to the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got.astype("float64") - want).max() / np.abs(want).max())


class Exports:
    """A folder of exported programs, and what another process makes of them.

    `outputs` are in the order of the cases; `wanted` are in it too.
    """

    def __init__(self, folder: Path, inputs: dict[str, np.ndarray]) -> None:
        self.folder, self.programs = folder, {}
        np.savez(folder / "inputs.npz", **inputs)

    def add(self, name: str, kind: str, file: str = "") -> Path:
        """Where to write a program that the loader's function `kind` reads."""
        self.programs[name] = (kind, file or name)
        return self.folder / (file or name)

    def load(self) -> None:
        (self.folder / "programs.json").write_text(json.dumps(self.programs))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, str(WORKER), str(self.folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def outputs(self, name: str) -> list[np.ndarray]:
        failed = self.folder / f"{name}.txt"
        assert not failed.exists(), failed.read_text()
        return list(np.load(self.folder / f"{name}.npz").values())
