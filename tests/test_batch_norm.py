"""`batch_norm` against the NumPy float64 model: every mode with every other."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import batchnorm
import engines
import reference
from strategies import Call, call_on, calls, thorough

EXAMPLES = {"tensorflow": 40, "jax": 10, "torch": 80}
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}


def by_reference(call: Call) -> dict[str, Any]:
    """What the reference returns for a call, under the names of `engines.stepper`."""
    options = {k: v for k, v in (call.options | call.given).items() if k != "fused"}
    result = reference.batch_norm(call.x, call.parameters, call.state, dy=call.dy, **options)
    return {"y": result.y, "dx": result.dx, "state": result.state, **result.gradients}


def assert_close(got: Any, expected: Any, tolerance: float, what: str) -> None:
    """To a tolerance relative to the largest value, and to 1."""
    expected = np.asarray(expected, np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, finite.max()) if finite.size else 1.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def assert_agree(got: dict[str, Any], expected: dict[str, Any], dtype: str = "float32") -> None:
    assert set(got["state"]) == set(expected["state"])
    for name, value in expected["state"].items():
        exact = ROUNDING["float64" if dtype == "float64" else "float32"]
        assert_close(got["state"][name], value, exact, name)
        assert got["state"][name].shape == np.shape(value)
    for name in set(expected) - {"state"}:
        # derivatives by parameters are sums of 16-bit products, in float32
        exact = ROUNDING[dtype] * (1 if name in ("y", "dx", "gamma", "beta") else 0)
        assert_close(got[name], expected[name], exact, name)


def check(engine: engines.Engine, call: Call, dtype: str = "float32", mode: str = "") -> None:
    """Runs a call and compares everything with the reference."""
    with engine.precision(dtype):
        call = rounded(engine, call, dtype)
        step = engines.stepper(engine, mode or engine.quick, **call.options)
        got = step(call.x, call.parameters, call.state, dy=call.dy, dtype=dtype, **call.given)
        assert_agree(got, by_reference(call), dtype)


def rounded(engine: engines.Engine, call: Call, dtype: str) -> Call:
    """The call in another type: what the type cannot hold is not the function's error."""

    def cast(value: np.ndarray, to: str) -> np.ndarray:
        if value.dtype.kind != "f" or to == "float32":
            return value
        return engine.numpy(engine.tensor(value, to))

    vectors = "float64" if dtype == "float64" else "float32"
    return Call(
        cast(call.x, dtype),
        cast(call.dy, dtype),
        {name: cast(value, vectors) for name, value in call.parameters.items()},
        {name: cast(value, vectors) for name, value in call.state.items()},
        call.options,
        call.given,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_combination_of_modes_agrees_with_the_reference(
    engine: engines.Engine, dtype: str
) -> None:
    examples = EXAMPLES[engine.name] * (3 if dtype == "float32" else 1)

    @thorough(examples)
    @given(calls())
    def agrees(call: Call) -> None:
        check(engine, call, dtype)

    agrees()


EVERYTHING = {
    "renorm": True,
    "renorm_momentum": 0.7,
    "virtual_batch_size": 3,
    "zero_debias": "both",
    "unbiased_moving_variance": True,
    "momentum": 0.8,
}
COMPILED = {
    "plain": {},
    "renorm with a schedule": {
        "renorm": True,
        "renorm_clipping": {"rmax": lambda step: 1.1 + 0.01 * step, "rmin": 0.9, "dmax": 0.2},
    },
    "ghost batches of a pooled variance": {"virtual_batch_size": 2, "pooled_moving_variance": True},
    "everything": EVERYTHING,
    "everything on two axes": EVERYTHING | {"axis": [1, 3]},
}


@pytest.mark.parametrize("name", list(COMPILED))
def test_compiled_functions_agree_with_the_reference(engine: engines.Engine, name: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(1.0, 2.0, (6, 4, 5, 3)).astype("float32")
    options = dict(COMPILED[name], training=True)
    weighted = {}
    if name.startswith("everything"):
        varying = rng.uniform(0.5, 1.5, (6, 1, 5, 3)).astype("float32")
        options["adjustment"] = lambda shape: (varying, varying[:1])
        weighted["mask"] = rng.random((6, 4) if name == "everything" else (6, 5)) < 0.7
        weighted["batch_weights"] = rng.uniform(0.5, 2, 6).astype("float32")
        x[0, :2, 0] = np.where(rng.random(3) < 2, np.nan, 0)
        weighted["mask"][0] = False
    for mode in engine.modes[1:]:
        check(engine, call_on(rng, x, given=weighted, **options), mode=mode)


@pytest.mark.parametrize(
    ("dtype", "statistics"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")],
)
def test_an_input_keeps_its_type_and_its_statistics_have_32_bits_or_more(
    engine: engines.Engine, dtype: str, statistics: str
) -> None:
    with engine.precision(dtype):
        x = engine.tensor(np.ones((4, 3)), dtype)
        y, state = batchnorm.batch_norm(x, *batchnorm.init(x), training=True)
        assert engine.ops.dtype(y) == dtype
        assert engine.ops.dtype(state["moving_mean"]) == statistics


@pytest.mark.parametrize("flag", [True, False])
def test_a_tensor_that_says_whether_to_train_acts_like_its_value(
    engine: engines.Engine, flag: bool
) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(6, 3)).astype("float32")
    for options in ({}, EVERYTHING):
        call = call_on(rng, x, **options)
        for mode in engine.modes[:2] if engine.name == "tensorflow" else (engine.quick,):
            step = engines.stepper(engine, mode, **call.options)
            got = step(call.x, call.parameters, call.state, dy=call.dy, training=np.array(flag))
            call.options["training"] = flag
            assert_agree(got, by_reference(call))
            del call.options["training"]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, Fraction])
def test_options_may_be_numbers_of_any_kind(engine: engines.Engine, kind: Any) -> None:
    """NumPy's numbers widen arrays of JAX, where that has 64 bits."""
    rng = np.random.default_rng(2)
    call = call_on(rng, rng.normal(size=(6, 3)).astype("float32"), renorm=True, training=True)
    half, one = kind(0.5), kind(1)
    numbers = {"epsilon": half, "momentum": half, "renorm_momentum": half}
    bounds = {"rmax": one, "rmin": half, "dmax": half}
    with engine.precision("float64"):
        step = engines.stepper(engine, **call.options, **numbers, renorm_clipping=bounds)
        got = step(call.x, call.parameters, call.state, dy=call.dy)
    plain = {name: float(value) for name, value in numbers.items()}
    clipping = {name: float(value) for name, value in bounds.items()}
    call.options |= plain | {"renorm_clipping": clipping}
    assert_agree(got, by_reference(call))


def test_nothing_given_is_changed(engine: engines.Engine) -> None:
    x = engine.tensor(np.arange(12.0).reshape(4, 3), "float32")
    parameters, state = batchnorm.init(x)
    before = {name: engine.numpy(value).copy() for name, value in state.items()}
    batchnorm.batch_norm(x, parameters, state, training=True)
    for name, value in before.items():
        np.testing.assert_array_equal(engine.numpy(state[name]), value)


# What is refused, each message whole.


def refusal(engine: engines.Engine, error: type[Exception], x: Any = None, **changed: Any) -> str:
    """The message of the error that a call ends with."""
    x = engine.tensor(np.ones((6, 3), "float32")) if x is None else x
    parameters, state = batchnorm.init(x)
    given = {"parameters": parameters, "state": state} | changed
    with pytest.raises(error) as caught:
        batchnorm.batch_norm(x, **given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("training", "error"),
    [(2, ValueError), (-1, ValueError), ("no", TypeError), (0.5, TypeError), ([], TypeError)],
)
def test_training_says_yes_or_no(
    engine: engines.Engine, training: Any, error: type[Exception]
) -> None:
    """D38: some of the originals take the truth of anything: 'no' trains."""
    assert refusal(engine, error, training=training) == (
        f"batch_norm: training must be a bool, 0, 1 or a boolean scalar tensor; got {training!r}."
    )


def test_integers_are_refused(engine: engines.Engine) -> None:
    x = engine.tensor(np.ones((6, 3), "int32"))
    message = "x must be float16, bfloat16, float32 or float64; got int32. Cast it first."
    for owner, function in (("init", batchnorm.init), ("batch_norm", None)):
        with pytest.raises(TypeError) as caught:
            function(x) if function else batchnorm.batch_norm(x, {}, {})
        assert str(caught.value) == f"{owner}: {message}"


def test_unknown_parameters_are_refused(engine: engines.Engine) -> None:
    assert refusal(engine, ValueError, parameters={"scale": 1.0}) == (
        "batch_norm: parameters must have no other keys than gamma and beta; got ['scale']."
    )


def test_a_state_of_another_mode_is_refused(engine: engines.Engine) -> None:
    assert refusal(engine, ValueError, renorm=True, training=True) == (
        "batch_norm: state must hold moving_mean, moving_variance, moving_stddev, renorm_mean, "
        "renorm_stddev; got no moving_stddev, renorm_mean, renorm_stddev. Start from "
        "batchnorm.init with the same axis, renorm and zero_debias."
    )


@pytest.mark.parametrize("fused", [None, False])
def test_no_state_is_needed_where_no_statistics_are_asked_for(
    engine: engines.Engine, fused: bool | None
) -> None:
    x = np.random.default_rng(3).normal(1.0, 2.0, (6, 3)).astype("float32")
    start = {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)}
    options = {"statistics": "batch", "update_statistics": False}
    for weighted in ({}, {"mask": np.arange(6) < 4}, {"mask": np.zeros(6, bool)}):
        tensors = {name: engine.tensor(one) for name, one in weighted.items()}
        for state in (None, {}):
            y, new = batchnorm.batch_norm(
                engine.tensor(x), {}, state, fused=fused, **options, **tensors
            )
            want = reference.batch_norm(x, {}, start, training=True, **options, **weighted)
            assert_close(engine.numpy(y), want.y, 1e-5, "y")
            assert new == {}


def test_a_state_that_is_needed_is_asked_for(engine: engines.Engine) -> None:
    with pytest.raises(ValueError, match="state") as caught:
        batchnorm.batch_norm(engine.tensor(np.zeros((4, 3)), "float32"), {}, training=True)
    assert str(caught.value) == (
        "batch_norm: state must hold moving_mean, moving_variance; got no moving_mean, "
        "moving_variance. Start from batchnorm.init with the same axis, renorm and zero_debias."
    )


def test_an_activation_is_one_that_kernels_have(engine: engines.Engine) -> None:
    x = engine.tensor(np.array([[1.0, -2.0], [3.0, 4.0]]), "float32")
    y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), activation="relu", epsilon=0.0)
    np.testing.assert_array_equal(engine.numpy(y), [[1, 0], [3, 4]])
    with pytest.raises(ValueError, match="activation") as caught:
        batchnorm.batch_norm(x, *batchnorm.init(x), activation="tanh")
    assert str(caught.value) == "batch_norm: activation must be one of None, 'relu'; got 'tanh'."


def test_a_vector_of_another_size_is_refused(engine: engines.Engine) -> None:
    gamma = engine.tensor(np.ones(4, "float32"))
    assert refusal(engine, ValueError, parameters={"gamma": gamma}) == (
        "batch_norm: gamma must have the shape (3,); got (4,) for an input of shape (6, 3) and "
        "axis -1."
    )


def test_a_batch_that_ghosts_do_not_divide_is_refused(engine: engines.Engine) -> None:
    assert refusal(engine, ValueError, training=True, virtual_batch_size=4) == (
        "batch_norm: virtual_batch_size must divide the batch in training; got 4 for a batch of "
        "6. Drop or pad the last batch."
    )


def test_any_batch_is_fine_with_ghosts_in_inference(engine: engines.Engine) -> None:
    """D01: layers_v1 fails here."""
    x = engine.tensor(np.ones((5, 3), "float32"))
    y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), virtual_batch_size=4)
    assert engine.numpy(y).shape == (5, 3)


def test_a_refused_call_leaves_everything_usable(engine: engines.Engine) -> None:
    x = engine.tensor(np.ones((6, 3), "float32"))
    parameters, state = batchnorm.init(x)
    before = {name: engine.numpy(value).copy() for name, value in state.items()}
    mask = engine.tensor(np.ones(5, "float32"))
    with pytest.raises(ValueError, match="mask must broadcast"):
        batchnorm.batch_norm(x, parameters, state, training=True, mask=mask)
    for name, value in before.items():
        np.testing.assert_array_equal(engine.numpy(state[name]), value)
    batchnorm.batch_norm(x, parameters, state, training=True)


def test_one_process_uses_all_frameworks_at_once() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    outputs = []
    for engine in engines.ENGINES.values():
        tensor = engine.tensor(x)
        outputs.append(
            engine.numpy(batchnorm.batch_norm(tensor, *batchnorm.init(tensor), training=True)[0])
        )
    np.testing.assert_allclose(outputs[1:], [outputs[0]] * 2, atol=1e-6)


def test_init_starts_where_the_first_batch_finds_it(engine: engines.Engine) -> None:
    x = engine.tensor(np.zeros((2, 3, 4, 5)), "float32")
    parameters, state = batchnorm.init(x, axis=[1, 3], renorm=True, zero_debias="both")
    ones = {"gamma", "moving_variance", "moving_stddev", "renorm_stddev"}
    for name, value in (parameters | state).items():
        if name != "num_updates":
            np.testing.assert_array_equal(
                engine.numpy(value), np.full((1, 3, 1, 5), float(name in ones))
            )
    assert int(engine.numpy(state["num_updates"])) == 0


def test_init_leaves_out_what_is_turned_off(engine: engines.Engine) -> None:
    x = engine.tensor(np.zeros((2, 3)), "float32")
    assert set(batchnorm.init(x, center=False)[0]) == {"gamma"}
    assert set(batchnorm.init(x, scale=False)[0]) == {"beta"}
