"""Measures the table of docs/features.md: `python -m benchmarks.features [--reasons]`.

Needs TensorFlow, JAX, PyTorch, Keras, flax and tf_keras. Every engine runs in its own process. A
cell is "yes" only where the result agrees with the few lines of NumPy in `truth`; "no" where the
engine has no such option, raises, or is wrong; `--reasons` says which.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.features import modes, numbers
from benchmarks.features.engines import engine
from benchmarks.features.truth import start_anew

ENGINES = {
    "batchnorm": ("ours-tensorflow", "ours-jax", "ours-torch"),
    "Keras": ("keras-tensorflow", "keras-jax", "keras-torch"),
    "torch": ("torch",),
    "flax": ("flax",),
    "tf_keras": ("tf_keras",),
}


ROWS: dict[str, Callable[[Any], Any]] = {
    "renorm": modes.renorm,
    "clipping that changes over time": modes.scheduled_clipping,
    "ghost batches": modes.ghost_batches,
    "ghost batches with renorm, r and d per group": modes.ghost_renorm,
    "adjustment": modes.adjustment,
    "several axes": modes.several_axes,
    "boolean mask, channels last": modes.boolean_mask,
    "boolean mask, channels first": modes.channels_first_mask,
    "mask with one value per example, rank 3": modes.short_mask,
    "NaN under the mask": modes.masked_nan,
    "weight per example": modes.weights,
    "zero-debias": modes.zero_debias,
    "moving variance, rank 2": numbers.variance_rank_2,
    "moving variance, rank 4": numbers.variance_rank_4,
    "choice of biased or unbiased": numbers.variance_choice,
    "synchronized over two replicas, CPU": modes.synchronized,
    "statistics survive a NaN": numbers.nan_batch,
    "statistics survive an empty batch": numbers.empty_batch,
    "statistics survive a fully masked batch": numbers.all_masked,
    "error of y, mean 1e3": lambda e: numbers.offset_error(e, 1e3),
    "error of y, mean 1e4": lambda e: numbers.offset_error(e, 1e4),
    "error of y, mean 1e4, compiled": lambda e: numbers.offset_error(e, 1e4, compile=True),
    "error of second derivatives": numbers.second_derivatives,
    "unknown sizes in a TensorFlow graph": numbers.unknown_sizes,
    "`training` as a tensor, compiled": numbers.tensor_training,
    "float32 statistics in a float16 layer": numbers.wide_statistics,
    "one update under gradient checkpointing": numbers.checkpointed,
    "fused kernel": numbers.fused,
}


def measure(name: str, reasons: bool) -> dict[str, str]:
    """The cells of an engine, by row."""
    e = engine(name)
    cells = {"version": str(e.version)}
    for row, probe in ROWS.items():
        start_anew()
        reason = ""
        try:
            result = probe(e)
        except Exception as error:
            result, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
        cells[row] = word(result)
        if reasons and cells[row] == "no":
            print(f"{name}: {row}: {reason or 'wrong'}", file=sys.stderr, flush=True)
    return cells


def word(result: Any) -> str:
    """What a cell says of a probe's result."""
    if result is None:
        return "-"
    if isinstance(result, bool):
        return "yes" if result else "no"
    if isinstance(result, str):
        return result
    if math.isnan(result):
        return "NaN"
    return f"{result:.0e}" if result < 1 else f"{result:.3g}"


def _cell(answers: list[str]) -> str:
    if len(set(answers) - {"-"}) <= 1:
        return next((one for one in answers if one != "-"), "-")
    return ", ".join(
        f"{short} {one}" for short, one in zip(("TF", "JAX", "torch"), answers, strict=True)
    )


def main() -> None:
    reasons = "--reasons" in sys.argv
    if "--engine" in sys.argv:
        print(json.dumps(measure(sys.argv[-1], reasons)))
        return
    measured = {}
    for name in (name for names in ENGINES.values() for name in names):
        backend = "tensorflow" if name == "tf_keras" else name.partition("-")[2]
        environment = {**os.environ, "KERAS_BACKEND": backend or "jax"}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "benchmarks.features", *sys.argv[1:], "--engine", name]
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            stderr=None if reasons else subprocess.DEVNULL,
        )
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    heads = [f"{title} {measured[names[0]]['version']}" for title, names in ENGINES.items()]
    print("| | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for row in ROWS:
        cells = [_cell([measured[name][row] for name in names]) for names in ENGINES.values()]
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
