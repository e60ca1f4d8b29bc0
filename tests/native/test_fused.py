"""The kernels in every mode, type and layout: against the reference, and the composite path too."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines
import reference
from batchnorm import _axes
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from strategies import Call, adjustment_of, axes_of, call_on, thorough, weights_of

SIZES = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130)
ROUNDING = {"float64": 1e-11, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
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


def assert_close(
    got: dict[str, Any],
    expected: dict[str, Any],
    dtype: str,
    rounded_to_x: tuple[str, ...] = ("y", "dx"),
) -> None:
    for name, value in expected.items():
        narrow = name in rounded_to_x or dtype == "float64"
        bar = ROUNDING[dtype] if narrow else 1e-5
        finite = np.abs(value)[np.isfinite(value)]
        scale = max(1.0, finite.max(initial=0.0))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=bar * scale, err_msg=name)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Any rank from 1 to 5, at most 4000 elements."""
    shape: list[int] = []
    for _ in range(draw(st.integers(1, 5))):
        room = 4000 // max(1, int(np.prod([size or 1 for size in shape])))
        shape.append(draw(st.sampled_from([size for size in SIZES if size <= room])))
    return tuple(shape)


MODES = ("plain", "renorm", "ghost", "mask", "weights", "adjustment", "frozen", "relu", "together")


@st.composite
def native_calls(draw: st.DrawFn, mode: str, dtype: str) -> tuple[Call, str | None]:
    shape = draw(shapes())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = len(shape)
    options: dict[str, Any] = {"training": mode != "frozen", "momentum": 0.5, "epsilon": 1e-2}
    divisors = [v for v in (1, 2, 3, 4, 8) if rank > 1 and shape[0] and shape[0] % v == 0]
    ghost = mode == "ghost" or (mode == "together" and draw(st.booleans()))
    if ghost and divisors:
        options["virtual_batch_size"] = draw(st.sampled_from(divisors))
    axis = options["axis"] = draw(axes_of(rank, "virtual_batch_size" in options))
    axes = _axes.resolve(axis if isinstance(axis, int) else tuple(axis), rank, "test")
    if mode in ("renorm", "together"):
        options |= {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}}
    if mode == "adjustment":
        options["adjustment"] = draw(adjustment_of(shape, rng))
    x = rng.normal(size=shape) * 1.5 + rng.uniform(-3, 3)
    given_ = {}
    if mode in ("mask", "together"):
        given_["mask"] = draw(weights_of(shape, axis, rng, "mask"))
    if mode in ("weights", "together"):
        given_["batch_weights"] = draw(weights_of(shape, axis, rng, "weights"))
    names = draw(st.sampled_from([("gamma", "beta"), ("gamma",), ("beta",), ()]))
    call = call_on(rng, rounded(x, dtype), names, given_, **options)
    call.dy = rounded(call.dy.astype("float64"), dtype)
    activation = "relu" if mode == "relu" or (mode == "together" and len(axes) == 1) else None
    return call, activation


def check_both_paths(engine: engines.Engine, drawn: tuple[Call, str | None], dtype: str) -> None:
    call, activation = drawn
    expected = truth(call, activation)
    for fused in (True, False):
        got = step(engine, call, dtype, fused=fused, activation=activation)
        # a varying adjustment multiplies values that were rounded to x's type
        adjusted = "adjustment" in call.options
        assert_close(got, expected, dtype, ("y", "dx", "gamma") if adjusted else ("y", "dx"))


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["torch", "tensorflow"])
def test_both_paths_give_the_reference(name: str, mode: str, dtype: str) -> None:
    @thorough({"torch": 10, "tensorflow": 4}[name])
    @given(native_calls(mode, dtype))
    def check(drawn: tuple[Call, str | None]) -> None:
        check_both_paths(engines.ENGINES[name], drawn, dtype)

    check()


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_both_paths_of_jax_give_the_reference(dtype: str) -> None:
    @thorough(8)
    @given(st.sampled_from(MODES).flatmap(lambda mode: native_calls(mode, dtype)))
    def check(drawn: tuple[Call, str | None]) -> None:
        check_both_paths(engines.ENGINES["jax"], drawn, dtype)

    check()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 3), -1), ((1, 3, 1), 1), ((3, 1), -1), ((0, 3), -1), ((2, 0, 3), -1), ((2, 3, 0), 1),
        ((4, 0), -1), ((2, 0, 5), 1), ((257, 3), -1), ((3, 5, 257), 1), ((5, 129, 2), 1),
        ((300, 33), -1), ((2, 3, 4, 5), [1, 3]), ((2, 3, 4, 5), [0, 2]), ((7,), 0), ((0,), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edge_sizes(engine: engines.Engine, shape: tuple, axis: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rounded(rng.normal(1.0, 2.0, shape), dtype)
    call = call_on(rng, x, training=True, axis=axis, momentum=0.5)
    call.dy = rounded(call.dy.astype("float64"), dtype)
    assert_close(step(engine, call, dtype, fused=True), truth(call, None), dtype)


# Memory orders that only torch can have.


def torch_step(x: Any, dy: Any, axis: int, **options: Any) -> dict[str, Any]:
    import torch

    engine = engines.ENGINES["torch"]
    x = x.detach().requires_grad_()
    c = x.shape[axis]
    call = call_on(np.random.default_rng(3), np.zeros((1, c), "float32"))
    gamma, beta = (torch.tensor(call.parameters[k], requires_grad=True) for k in ("gamma", "beta"))
    state = {name: engine.tensor(value) for name, value in call.state.items()}
    y, new = normalize(
        Options(axis=axis, fused=True, **options), x, {"gamma": gamma, "beta": beta}, state, True
    )
    dx, *slopes = torch.autograd.grad(y, [x, gamma, beta], dy)
    return {"y": y.detach(), "dx": dx, "gamma": slopes[0], "beta": slopes[1], **new}


DTYPES = st.sampled_from(["float32", "float64", "float16", "bfloat16"])


@thorough(60)
@given(
    st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 17])] * 4), st.permutations(range(4)),
    st.tuples(*[st.sampled_from([1, 1, 2, 3])] * 4), st.integers(0, 9), DTYPES, st.booleans(),
)  # fmt: skip
def test_any_strides_and_offsets_give_the_same_numbers(
    shape: tuple, order: list, steps: tuple, offset: int, dtype: str, strided_dy: bool
) -> None:
    """Storage that starts anywhere, dimensions in any order, gaps between elements."""
    import torch

    def laid_out(values: Any) -> Any:
        padded = [size * step for size, step in zip(shape, steps, strict=True)]
        storage = torch.full((offset + int(np.prod(padded)) + 5,), torch.nan, dtype=values.dtype)
        strides = [0] * 4
        run = 1
        for dimension in reversed(order):
            strides[dimension] = run * steps[dimension]
            run *= padded[dimension]
        view = torch.as_strided(storage, shape, strides, offset)
        view.copy_(values)
        return view

    torch.manual_seed(0)
    x, dy = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(2))
    expected = torch_step(x, dy, 1)
    got = torch_step(laid_out(x), laid_out(dy) if strided_dy else dy, 1)
    for name, value in expected.items():
        bar = 2 * ROUNDING[dtype] if name in ("y", "dx") else 1e-5
        torch.testing.assert_close(got[name], value, rtol=bar, atol=bar, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_memory_stays_as_it_is(dims: int, dtype: str) -> None:
    import torch

    order = [torch.channels_last, torch.channels_last_3d][dims - 2]
    x, dy = (torch.randn(4, 5, *[3, 7, 2][:dims]).to(getattr(torch, dtype)) for _ in range(2))
    expected = torch_step(x, dy, 1)
    got = torch_step(x.to(memory_format=order), dy.to(memory_format=order), 1)
    for name in ("y", "dx"):
        assert got[name].is_contiguous(memory_format=order)
    for name, value in expected.items():
        bar = 2 * ROUNDING[dtype] if name in ("y", "dx") else 1e-5
        torch.testing.assert_close(got[name], value, rtol=bar, atol=bar, msg=name)


def test_memory_of_the_other_sign_is_read_as_what_it_stands_for() -> None:
    """`z.conj().imag` is a view with a mark; contiguous where z has one number only a place."""
    import torch

    random = np.random.default_rng(7)
    x, dy = (torch.from_numpy(random.normal(3.0, 2.0, (6, 4)).astype("float32")) for _ in range(2))
    marked = [torch._neg_view(-one) for one in (x, dy)]
    assert all(one.is_neg() and one.is_contiguous() for one in marked)
    wanted = torch_step(x, dy, 1)
    for name, got in torch_step(*marked, 1).items():
        np.testing.assert_array_equal(got.resolve_neg(), wanted[name])


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "offset"])
def test_no_copy_is_made_of_what_the_kernels_can_read(order: str) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    x, dy = torch.randn(4, 5, 6, 7), torch.randn(4, 5, 6, 7)
    if order == "channels_last":
        x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    elif order == "offset":
        x = torch.randn(x.numel() + 1)[1:].view(x.shape)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch_step(x, dy, 1)
    copied = [
        event.key
        for event in profiler.key_averages(group_by_input_shape=True)
        if event.key in ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
        and any(np.prod(shape) == x.numel() for shape in event.input_shapes if shape)
    ]
    assert not copied


# Second derivatives, float64: tests/backends has the modes, these are the layouts and the ReLU.


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("axis", [1, -1, [1, 3]])
def test_second_derivatives_of_the_fused_path(
    engine: engines.Engine, axis: Any, activation: str | None
) -> None:
    rng = np.random.default_rng(5)
    call = call_on(rng, rng.normal(1.0, 2.0, (3, 4, 2, 5)), axis=axis)
    direction = rng.normal(size=call.x.shape)
    state = {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in call.state.items()}
    given_ = {"training": True, "axis": axis}

    def cotangent(y: np.ndarray) -> np.ndarray:
        return np.where((y > 0) | (activation is None), call.dy + 3 * y**2, 0)

    expected = reference.hessian_vector_product(
        call.x, direction, cotangent, call.parameters, state, **given_
    )
    with engine.precision("float64"):
        parameters = {k: engine.tensor(v, "float64") for k, v in call.parameters.items()}
        held = {key: engine.tensor(value) for key, value in state.items()}
        upstream = engine.tensor(call.dy)
        options = Options(axis=axis, fused=True, activation=activation)

        def loss(x: Any) -> Any:
            y, _ = normalize(options, x, parameters, held, True)
            return engines.total(y * upstream + y * y * y)

        (product,) = engine.hvp(loss, [engine.tensor(call.x)], [engine.tensor(direction)])
        got = engine.numpy(product)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Accuracy, design section 5.

BARS = {"y": 2e-6, "dx": 1e-5, "gamma": 1e-5, "beta": 1e-5, "moving_variance": 1e-5}
LAYOUTS = {"last": ((20_001, 5), -1), "first": ((11, 5, 1_501), 1), "wide": ((301, 130), -1)}
ACCURACY: dict[str, dict[str, Any]] = {
    "plain": {},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 1.1, "rmin": 0.9, "dmax": 0.1}},
    "ghost": {"virtual_batch_size": 1},
    "weights": {},
}


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


@pytest.mark.parametrize("mode", list(ACCURACY))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_large_mean_costs_no_digits(engine: engines.Engine, layout: str, mode: str) -> None:
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    options = dict(ACCURACY[mode], axis=axis)
    if "virtual_batch_size" in options:
        options["virtual_batch_size"] = {20_001: 6_667, 11: 11, 301: 43}[shape[0]]
    weights = {"batch_weights": rng.uniform(0.5, 2, shape[0]).astype("float32")}
    ratios = (0.0, 1e3, 1e5) if engine.name == "torch" else (1e5,)
    for ratio in ratios:
        x = rng.normal(ratio, 1.0, shape).astype("float32")
        found = errors(engine, x, weights if mode == "weights" else {}, **options)
        beyond = {name: e for name, e in found.items() if not e <= BARS[name]}
        assert not beyond, ratio


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_squares_may_overflow_float32(engine: engines.Engine, layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(3e19, 1e19, shape).astype("float32")
    found = errors(engine, x, {}, axis=axis)
    assert {name: e for name, e in found.items() if not e <= BARS[name]} == {}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_first_element_far_from_the_rest_costs_no_digits(
    engine: engines.Engine, layout: str
) -> None:
    """Where the first element is the shift, 1e6 is a bad one."""
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(0.0, 1.0, shape).astype("float32")
    x[tuple(slice(None) if i == axis % x.ndim else 0 for i in range(x.ndim))] = 1e6
    found = errors(engine, x, {}, axis=axis)
    found.pop("y")  # as large as sqrt(N) there
    found.pop("gamma")  # a sum that the outlier dominates
    assert {name: e for name, e in found.items() if not e <= BARS[name]} == {}
