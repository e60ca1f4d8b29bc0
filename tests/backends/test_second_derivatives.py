"""Hessian-vector products against finite differences of the reference, in float64.

D31: the originals, and Keras 3 on TensorFlow, are off by 6e-2 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
import reference
from curvature import CASES, NAMES
from strategies import call_on


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("name", list(CASES))
def test_the_hessian_times_a_vector_is_exact(
    engine: engines.Engine, name: str, fused: bool | None
) -> None:
    options = CASES[name]
    rng = np.random.default_rng(3)
    call = call_on(rng, rng.normal(1.0, 2.0, (6, 4, 3)), renorm=options.get("renorm", False))
    at = {"x": call.x} | {k: v.astype("float64") for k, v in call.parameters.items()}
    state = {k: v.astype("float64") if v.dtype == "float32" else v for k, v in call.state.items()}
    directions = {key: rng.normal(size=value.shape) for key, value in at.items()}

    with engine.precision("float64"):
        held = {key: engine.tensor(value) for key, value in state.items()}
        upstream = engine.tensor(call.dy)

        def loss(x: Any, gamma: Any, beta: Any) -> Any:
            parameters = {"gamma": gamma, "beta": beta}
            given = dict(options, fused=fused, training=True)
            y, _ = batchnorm.batch_norm(x, parameters, held, **given)
            return engines.total(y * upstream + y * y * y)

        arguments = [engine.tensor(at[key]) for key in NAMES]
        vectors = [engine.tensor(directions[key]) for key in NAMES]
        got = [engine.numpy(part) for part in engine.hvp(loss, arguments, vectors)]

    fixed = dict(options)
    if options.get("renorm"):  # r and d are constants of every derivative
        fixed["corrections"] = reference.renorm_corrections(at["x"], state, **options)

    def slopes(step: float) -> list[np.ndarray]:
        moved = {key: at[key] + step * directions[key] for key in NAMES}
        parameters = {key: moved[key] for key in ("gamma", "beta")}
        y = reference.batch_norm(moved["x"], parameters, state, training=True, **fixed).y
        result = reference.batch_norm(
            moved["x"], parameters, state, training=True, dy=call.dy + 3 * y**2, **fixed
        )
        return [result.dx, result.gradients["gamma"], result.gradients["beta"]]

    for key, product, after, before in zip(NAMES, got, slopes(1e-5), slopes(-1e-5), strict=True):
        expected = (after - before) / 2e-5
        scale = np.abs(expected).max()
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-5 * scale, err_msg=key)
