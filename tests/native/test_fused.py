"""The kernels in every mode, type and layout: against the reference, and the composite path too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines
import reference
from batchnorm import _axes
from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from fused_calls import rounded, step, truth
from strategies import Call, adjustment_of, axes_of, call_on, thorough, weights_of

SIZES = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 130)
ROUNDING = {"float64": 1e-11, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


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
