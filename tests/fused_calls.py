"""A call as tests of the kernels make it, and what the reference says of it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import engines
import reference
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from strategies import Call, call_on

# How far the kernels may be off, in float32: design, section 5.
BARS = {"y": 2e-6, "dx": 1e-5, "gamma": 1e-5, "beta": 1e-5, "moving_variance": 1e-5}
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The values that x has in this type."""
    return x if dtype == "float64" else x.astype(NUMPY[dtype]).astype("float32")


def step(engine: engines.Engine, call: Call, dtype: str, **more: Any) -> dict[str, Any]:
    """A call as arrays, with `activation` and `fused` among the options."""
    options = {**call.options, **more}
    training = options.pop("training")
    chosen = Options(**options)

    def loss(x: Any, *vectors: Any) -> Any:
        parameters = dict(zip(call.parameters, vectors, strict=True))
        y, new = normalize(chosen, x, parameters, state, training, **extra)
        return engines.total(y * upstream), (y, new)

    wide = "float64" if dtype == "float64" else "float32"
    with engine.precision(dtype):
        upstream = engine.tensor(call.dy, dtype)
        extra = {name: engine.tensor(value) for name, value in call.given.items()}
        state = {
            name: engine.tensor(value, wide if value.dtype.kind == "f" else None)
            for name, value in call.state.items()
        }
        vectors = [engine.tensor(value, wide) for value in call.parameters.values()]
        (_, (y, new)), (dx, *slopes) = engine.gradients(
            loss, engine.tensor(call.x, dtype), *vectors, mode=engine.quick
        )
        found = {"y": engine.numpy(y), "dx": engine.numpy(dx)}
        found |= {name: engine.numpy(v) for name, v in new.items()}
        return found | {k: engine.numpy(v) for k, v in zip(call.parameters, slopes, strict=True)}


def truth(call: Call, activation: str | None) -> dict[str, Any]:
    """The same from the reference, which knows no activation and computes in what it is given."""
    parameters = {name: value.astype("float64") for name, value in call.parameters.items()}
    state = {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in call.state.items()}
    given = {**call.options, **call.given}
    if activation == "relu":
        y = reference.batch_norm(call.x, parameters, state, **given).y
        call.dy = np.where(np.abs(y) < 0.05, 0, call.dy)  # where rounding may decide
        given["dy"] = np.where(y > 0, call.dy, 0)
    else:
        given["dy"] = call.dy
    expected = reference.batch_norm(call.x, parameters, state, **given)
    y = np.where(expected.y <= 0, 0, expected.y) if activation else expected.y
    return {"y": y, "dx": expected.dx, **expected.state, **expected.gradients}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def errors(engine: engines.Engine, x: np.ndarray, given_: dict, **options: Any) -> dict[str, float]:
    """y absolutely, for gamma = 1; the rest relative to the largest."""
    call = call_on(np.random.default_rng(1), x, given=given_, momentum=0.0, **options)
    call.options["training"] = True
    call.parameters["gamma"] = np.ones_like(call.parameters["gamma"])
    got, expected = step(engine, call, "float32", fused=True), truth(call, None)
    found = {name: relative(got[name], expected[name]) for name in ("dx", "gamma", "beta")}
    found["y"] = float(np.abs(got["y"] - expected["y"]).max())
    variance = expected["moving_variance"]
    found["moving_variance"] = float(np.abs(got["moving_variance"] / variance - 1).max())
    return found
