"""y = activation(batch_norm(x) + residual), against three separate steps of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
import reference

SHAPE = (6, 4, 3)
RNG = np.random.default_rng(31)
X, DY, R = (RNG.normal(1.0, 2.0, SHAPE) for _ in range(3))
MASK = RNG.random((6, 4)) < 0.7
WEIGHTS = RNG.uniform(0.5, 2.0, 6)

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "channels first": {"axis": 1},
    "several axes": {"axis": [0, 2]},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}},
    "ghost": {"virtual_batch_size": 2},
    "chunks": {"virtual_batch_size": 4, "ghost_order": "chunks"},
    "weights": {"mask": MASK, "batch_weights": WEIGHTS},
    "together": {"axis": 1, "renorm": True, "virtual_batch_size": 3, "batch_weights": WEIGHTS},
    "varying adjustment": {
        "adjustment": lambda shape: (WEIGHTS[:, None, None].astype("f4"), np.float32(0.25))
    },
    "moving": {"statistics": "moving"},
    "inference": {"training": False},
}
# Every mode, path and type, each with each of the others somewhere.
CASES = [
    (mode, fused, dtype, activation)
    for i, mode in enumerate(MODES)
    for j, fused in enumerate((None, False))
    for dtype in [("float32", "bfloat16", "float64", "float16")[(i + 2 * j) % 4]]
    for activation in [("relu", None)[i % 5 == 3]]
]
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


def start(engine: engines.Engine, mode: dict[str, Any], dtype: str) -> tuple[dict, dict]:
    x = engine.tensor(X, dtype)
    renorm = mode.get("renorm", False)
    parameters, state = batchnorm.init(x, axis=mode.get("axis", -1), renorm=renorm)
    arrays = {name: engine.numpy(one) for name, one in state.items()}
    shape = engine.numpy(parameters["gamma"]).shape
    rng = np.random.default_rng(5)
    values = {"gamma": rng.uniform(0.5, 1.5, shape), "beta": rng.normal(size=shape)}
    return {name: one.astype("float32") for name, one in values.items()}, arrays


def truth(mode: dict[str, Any], dtype: str, activation: Any, given: tuple) -> dict[str, Any]:
    """Three steps, and where the sum is far enough from 0 for every type."""
    x, residual, dy, parameters, state = given
    options = {"training": True, **mode}
    u = reference.batch_norm(x, parameters, state, **options).y
    if activation:
        dy = np.where(np.abs(u + residual) < 0.1, 0, dy)  # where rounding may decide
    passed = np.where((u + residual > 0) | (activation is None), dy, 0)
    want = reference.batch_norm(x, parameters, state, dy=passed, **options)
    total = want.y + residual
    y = np.maximum(total, 0) if activation else total
    return {"dy": dy, "y": y, "dx": want.dx, "dr": passed, **want.gradients, **want.state}


def step(
    engine: engines.Engine, mode: dict[str, Any], dtype: str, activation: Any, fused: Any,
    given: tuple, how: str = "eager",
) -> dict[str, Any]:  # fmt: skip
    """y, the new state, and the derivatives by x, the residual, gamma and beta."""
    x, residual, dy, parameters, state = given
    options = {"training": True, "fused": fused, "activation": activation, **mode}
    extra = {name: options.pop(name, None) for name in ("mask", "batch_weights")}
    extra = {name: engine.tensor(one) for name, one in extra.items() if one is not None}
    wide = "float64" if dtype == "float64" else "float32"
    upstream = engine.tensor(dy, dtype)
    held = {
        name: engine.tensor(one, wide if one.dtype.kind == "f" else None)
        for name, one in state.items()
    }

    def loss(x: Any, residual: Any, gamma: Any, beta: Any) -> Any:
        y, new = batchnorm.batch_norm(
            x, {"gamma": gamma, "beta": beta}, held, residual=residual, **options, **extra
        )
        return engines.total(y * upstream), (y, new)

    (_, (y, new)), found = engine.gradients(
        loss, engine.tensor(x, dtype), engine.tensor(residual, dtype),
        *(engine.tensor(parameters[name], wide) for name in ("gamma", "beta")), mode=how,
    )  # fmt: skip
    arrays = dict(zip(("dx", "dr", "gamma", "beta"), map(engine.numpy, found), strict=True))
    return {**arrays, "y": engine.numpy(y), **{k: engine.numpy(v) for k, v in new.items()}}


def check(
    engine: engines.Engine, name: str, dtype: str, activation: Any, fused: Any, how: str = "eager"
) -> None:
    with engine.precision(dtype):
        parameters, state = start(engine, MODES[name], dtype)
        arrays = [engine.numpy(engine.tensor(one, dtype)) for one in (X, R, DY)]
        want = truth(MODES[name], dtype, activation, (*arrays, parameters, state))
        arrays[2] = want.pop("dy")
        got = step(engine, MODES[name], dtype, activation, fused, (*arrays, parameters, state), how)
    assert set(got) == set(want)
    for one, value in want.items():
        scale = max(1.0, np.abs(value).max())
        exact = TOLERANCE[dtype] * scale
        np.testing.assert_allclose(got[one], value, rtol=0, atol=exact, err_msg=one)


@pytest.mark.parametrize(("name", "fused", "dtype", "activation"), CASES)
def test_a_residual_is_added_before_the_activation(
    engine: engines.Engine, name: str, fused: bool | None, dtype: str, activation: str | None
) -> None:
    check(engine, name, dtype, activation, fused)


@pytest.mark.parametrize("name", ["plain", "together"])
def test_a_compiled_function_adds_it_too(engine: engines.Engine, name: str) -> None:
    check(engine, name, "float32", "relu", None, engine.modes[1])


def test_tensorflow_adds_it_in_the_pass_of_the_kernels() -> None:
    tf = pytest.importorskip("tensorflow")
    if "tensorflow" not in engines.ENGINES or batchnorm.why_not("tensorflow"):
        pytest.skip("there are no kernels here")
    x = tf.constant(X, tf.float32)
    parameters, state = batchnorm.init(x)

    @tf.function(autograph=False)
    def step(x: Any, residual: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((x, residual))
            y, _ = batchnorm.batch_norm(
                x, parameters, state, training=True, residual=residual, activation="relu",
                update_statistics=False,
            )  # fmt: skip
        return tape.gradient(y, (x, residual), output_gradients=x)

    graph = step.get_concrete_function(x, x).graph
    kinds = [one.type for one in graph.get_operations() if one.type.startswith("Batchnorm")]
    assert kinds == ["BatchnormForwardAdd", "BatchnormBackwardAdd"]


def test_a_residual_changes_no_statistics_and_may_be_infinite(engine: engines.Engine) -> None:
    x = engine.tensor(X, "float32")
    parameters, state = batchnorm.init(x)
    wild = np.where(X > 1, np.inf, R)
    y, new = batchnorm.batch_norm(
        x, parameters, state, training=True, residual=engine.tensor(wild, "float32")
    )
    _, want = batchnorm.batch_norm(x, parameters, state, training=True)
    assert np.isinf(engine.numpy(y)).sum() == (X > 1).sum()
    for name, value in want.items():
        np.testing.assert_array_equal(engine.numpy(new[name]), engine.numpy(value))


@pytest.mark.parametrize("fused", [None, False])
def test_second_derivatives_are_exact(engine: engines.Engine, fused: bool | None) -> None:
    arrays = [engine.tensor(one.reshape(-1, 3)[:8], "float32") for one in (X, R)]
    parameters, state = batchnorm.init(arrays[0])
    directions = [engine.tensor(one.reshape(-1, 3)[8:16], "float32") for one in (DY, X)]

    def at_once(x: Any, residual: Any) -> Any:
        y, _ = batchnorm.batch_norm(
            x, parameters, state, training=True, fused=fused, residual=residual, activation="relu"
        )
        return engines.total(y * y * y)

    def in_steps(x: Any, residual: Any) -> Any:
        y, _ = batchnorm.batch_norm(x, parameters, state, training=True, fused=fused)
        y = (y + residual) * engine.ops.cast(y + residual > 0, "float32")
        return engines.total(y * y * y)

    got, want = (engine.hvp(one, arrays, directions) for one in (at_once, in_steps))
    for one, other in zip(got, want, strict=True):
        exact = engine.numpy(other)
        np.testing.assert_allclose(engine.numpy(one), exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [((6, 4), "float32", "(6, 4) of float32"), ((6, 1, 3), "float32", "(6, 1, 3) of float32"),
     (SHAPE, "float16", "(6, 4, 3) of float16")],
)  # fmt: skip
def test_a_residual_that_is_not_like_the_input_is_refused(
    engine: engines.Engine, shape: tuple[int, ...], dtype: str, said: str
) -> None:
    x = engine.tensor(X, "float32")
    with pytest.raises(ValueError, match="residual") as caught:
        batchnorm.batch_norm(x, *batchnorm.init(x), residual=engine.tensor(np.zeros(shape), dtype))
    assert str(caught.value) == (
        "batch_norm: residual must have the input's shape and type, (6, 4, 3) of float32; got "
        f"{said}."
    )
