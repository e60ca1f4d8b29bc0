"""The kernel that remembers: bit for bit what `_statistics.remember` says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from batchnorm._moments import Moments
from batchnorm._native import library
from batchnorm._options import Options
from batchnorm._statistics import remember
from batchnorm.backends import host

GROUPS, COLUMNS = 3, 7
NAMES = ("moving_mean", "moving_variance", "skipped_updates", "num_updates")


def given(dtype: str) -> tuple[Moments, dict[str, np.ndarray]]:
    """Moments with everything in them that a batch can do, and a state."""
    rng = np.random.default_rng(0)
    shape = (GROUPS, COLUMNS)
    mean, remainder, variance = (rng.normal(size=shape).astype(dtype) for _ in range(3))
    variance = variance * variance
    mean[0, 0], mean[1, 1], variance[0, 2] = np.nan, np.inf, np.nan
    variance[1, 3], variance[2, 4], variance[0, 5] = np.inf, -1, 0
    count = np.asarray([[5], [0], [1]], dtype)
    state = {
        "moving_mean": rng.normal(size=shape).astype(dtype),
        "moving_variance": rng.normal(size=shape).astype(dtype) ** 2,
        "num_updates": np.asarray(4, "int32"),
        "skipped_updates": np.arange(GROUPS * COLUMNS, dtype="int32").reshape(shape),
    }
    return Moments(mean, remainder * np.finfo(dtype).eps, variance, count), state


def expected(options: Options, state: Any, moments: Moments) -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        new = remember(host, options, state, moments, False, False)
    return {**state, **new}


def run(dtype: int, moments: Any, how: tuple[Any, ...], old: Any, new: Any) -> int:
    """`bn_remember` as C has it."""
    pointers = [None if one is None else one.ctypes.data for one in (*moments, *old, *new)]
    kernel = library.load().bn_remember
    return kernel(dtype, GROUPS, COLUMNS, *pointers[:4], *how, *pointers[4:])


OPTIONS = pytest.mark.parametrize(
    ("unbiased", "propagate", "momentum"),
    [(False, False, 0.9), (True, False, 0.99), (False, True, 0.0), (True, True, 1.0)],
)


def named(unbiased: bool, propagate: bool, momentum: float) -> dict[str, Any]:
    """The options as `batch_norm` takes them."""
    return {
        "unbiased_moving_variance": unbiased,
        "on_nonfinite": "propagate" if propagate else "skip",
        "momentum": momentum,
    }


@OPTIONS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_has_the_core_s_bits(
    dtype: str, unbiased: bool, propagate: bool, momentum: float
) -> None:
    moments, state = given(dtype)
    new = [np.full_like(state[name], 77) for name in NAMES]
    how = (momentum, unbiased, propagate)
    code = run(library.DTYPES[dtype], moments, how, [state[name] for name in NAMES], new)
    assert code == 0
    wanted = expected(Options(**named(unbiased, propagate, momentum)), state, moments)
    for name, one in zip(NAMES, new, strict=True):
        np.testing.assert_array_equal(one, wanted[name], err_msg=name)


def test_a_remainder_and_both_counters_may_be_absent() -> None:
    moments, state = given("float32")
    new = [np.full_like(state["moving_mean"], 77) for _ in range(2)]
    old = [state["moving_mean"], state["moving_variance"], None, None]
    exact = moments._replace(remainder=None)
    assert run(0, exact, (0.9, False, False), old, [*new, None, None]) == 0
    wanted = expected(Options(momentum=0.9), state, exact)
    np.testing.assert_array_equal(new[0], wanted["moving_mean"])
    np.testing.assert_array_equal(new[1], wanted["moving_variance"])


@pytest.mark.parametrize("missing", [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
def test_c_refuses_what_is_missing(missing: int) -> None:
    moments, state = given("float32")
    old = [state[name] for name in NAMES]
    new = [np.full_like(one, 77) for one in old]
    operands: list[Any] = [*moments, *old, *new]
    operands[missing] = None
    code = run(0, operands[:4], (0.9, False, False), operands[4:8], operands[8:])
    assert "NULL" in library.load().bn_error(code).decode()
    assert all((one == 77).all() for one in new)


def test_c_refuses_types_and_sizes() -> None:
    kernel, nothing = library.load().bn_remember, [None] * 4
    rest = (0.9, 0, 0, *[None] * 8)
    assert "dtype" in library.load().bn_error(kernel(4, 1, 1, *nothing, *rest)).decode()
    assert "sizes" in library.load().bn_error(kernel(0, -1, 1, *nothing, *rest)).decode()
    assert kernel(0, 0, 1, *nothing, *rest) == 0


@OPTIONS
def test_tensorflow_takes_the_kernel(unbiased: bool, propagate: bool, momentum: float) -> None:
    """Eagerly and in a graph, with a state in the shapes of parameters of several axes."""
    import tensorflow as tf

    import batchnorm

    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype("float32")
    x[:, 1, :, 0] = np.nan
    how = {"axis": (1, 3), **named(unbiased, propagate, momentum)}

    def step(x: Any, state: Any) -> Any:
        return batchnorm.batch_norm(x, {}, state, training=True, **how)[1]

    _, state = batchnorm.init(tf.constant(x), axis=(1, 3))
    compiled = tf.function(step)
    eager, traced = step(tf.constant(x), state), compiled(tf.constant(x), state)
    graph = compiled.get_concrete_function(tf.constant(x), state).graph
    assert [op.type for op in graph.get_operations()].count("BatchnormRemember") == 1
    # the composite path of the same moments: the state where the kernel does not hold it
    wide = {
        name: tf.cast(one, "int64") if "updates" in name else one for name, one in state.items()
    }
    other = step(tf.constant(x), wide)
    assert set(eager) == set(traced) == set(other)
    for name, value in other.items():
        assert eager[name].shape == traced[name].shape == state[name].shape
        assert eager[name].dtype == traced[name].dtype == state[name].dtype
        np.testing.assert_array_equal(eager[name], value, err_msg=name)
        np.testing.assert_array_equal(traced[name], value, err_msg=name)


@OPTIONS
def test_torch_takes_the_kernel(
    monkeypatch: pytest.MonkeyPatch, unbiased: bool, propagate: bool, momentum: float
) -> None:
    """With a state in the shapes of parameters of several axes, and nothing of it changed."""
    import torch

    import batchnorm
    from batchnorm.backends import torch as backend

    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype("float32"))
    x[:, 1, :, 0] = torch.nan
    how = {"axis": (1, 3), **named(unbiased, propagate, momentum)}
    taken = []

    def watched(name: str, original: Any) -> Any:
        def call(*operands: Any) -> Any:
            result = original(*operands)
            taken.append((name, result is not None))
            return result

        return call

    for owner, name in ((backend.KERNELS, "whole"), (backend.derivatives, "kernels_remember")):
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    _, state = batchnorm.init(x, axis=(1, 3))
    before = {name: one.clone() for name, one in state.items()}
    # array operations remember where the kernel does not hold the state
    others = [
        {name: one.long() if "updates" in name else one for name, one in state.items()},
        {**state, "moving_mean": torch.zeros(1, 2, 1, 3).transpose(1, 3)},
        {**state, "moving_variance": torch._neg_view(-state["moving_variance"])},
    ]
    new = batchnorm.batch_norm(x, {}, state, training=True, **how)[1]
    for other in others:
        wanted = batchnorm.batch_norm(x, {}, other, training=True, **how)[1]
        for name, value in wanted.items():
            assert new[name].shape == value.shape == state[name].shape
            assert (new[name].dtype, value.dtype) == (state[name].dtype, other[name].dtype)
            np.testing.assert_array_equal(new[name], value.resolve_neg(), err_msg=name)
    strided = torch.stack((x, x), -1)[..., 0]
    assert not strided.is_contiguous()
    for name, value in batchnorm.batch_norm(strided, {}, state, training=True, **how)[1].items():
        np.testing.assert_array_equal(new[name], value, err_msg=name)
    assert taken == [
        ("whole", True),
        *[("whole", False), ("kernels_remember", False)] * 2,
        ("whole", False),
        *[("whole", False), ("kernels_remember", True)],
    ]
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


@OPTIONS
def test_jax_takes_the_kernel(unbiased: bool, propagate: bool, momentum: float) -> None:
    """Eagerly, in a program, and one example after the other."""
    import jax

    import batchnorm

    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype("float32")
    x[:, 1, :, 0] = np.nan
    how = {"axis": (1, 3), **named(unbiased, propagate, momentum)}

    def step(x: Any, state: Any) -> Any:
        return batchnorm.batch_norm(x, {}, state, training=True, **how)[1]

    x = jax.numpy.asarray(x)
    _, state = batchnorm.init(x, axis=(1, 3))
    compiled = jax.jit(step)
    traced = compiled(x, state)
    assert compiled.lower(x, state).as_text().count("@batchnorm_remember(") == 1
    mapped = jax.vmap(step, (0, None))(jax.numpy.stack((x, x + 1)), state)
    # the composite path of the same moments: the state where the kernel does not hold it
    narrow = {
        name: one.astype("int16") if "updates" in name else one for name, one in state.items()
    }
    other = step(x, narrow)
    found = (step(x, state), traced, {name: one[0] for name, one in mapped.items()})
    for new in found:
        assert set(new) == set(other)
        for name, value in other.items():
            assert (new[name].shape, new[name].dtype) == (state[name].shape, state[name].dtype)
            np.testing.assert_array_equal(new[name], value, err_msg=name)
    one_more = step(x + 1, state)
    for name, value in one_more.items():
        np.testing.assert_array_equal(mapped[name][1], value, err_msg=name)


def test_a_moving_average_has_no_derivative_in_jax() -> None:
    import jax

    import batchnorm

    x = jax.random.normal(jax.random.key(0), (4, 3))
    _, state = batchnorm.init(x)

    def mean_of(x: Any, mean: Any) -> Any:
        given = {**state, "moving_mean": mean}
        return batchnorm.batch_norm(x, {}, given, training=True)[1]["moving_mean"]

    for slopes in jax.jacfwd(mean_of, (0, 1))(x, x[0]), jax.jacrev(mean_of, (0, 1))(x, x[0]):
        assert not any(np.any(one) for one in slopes)


def test_tensorflow_keeps_what_else_a_state_holds() -> None:
    import tensorflow as tf

    import batchnorm

    x = tf.random.normal((4, 3))
    _, state = batchnorm.init(x)
    full = batchnorm.batch_norm(x, {}, state, training=True)[1]
    for name in ("num_updates", "skipped_updates"):
        less = {other: one for other, one in state.items() if other != name}
        new = batchnorm.batch_norm(x, {}, less, training=True)[1]
        assert set(new) == set(less)
        for other in less:
            np.testing.assert_array_equal(new[other], full[other])


def test_a_moving_average_has_no_derivative_in_tensorflow() -> None:
    import tensorflow as tf

    import batchnorm

    x = tf.random.normal((4, 3))
    _, state = batchnorm.init(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        new = batchnorm.batch_norm(x, {}, state, training=True)[1]
        total = tf.reduce_sum(new["moving_mean"])
    assert tape.gradient(total, x) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("remainder", (1, 3)),
        ("count", (2, 1)),
        ("moving_mean", (3,)),
        ("skipped_updates", (5,)),
        ("num_updates", (2,)),
    ],
)
def test_tensorflow_names_the_vector(name: str, shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    from batchnorm.backends.tensorflow import kernels

    vectors = ("mean", "remainder", "variance", "count", "moving_mean", "moving_variance")
    operands = {one: tf.ones((1, 4)) for one in vectors} | {"count": tf.ones((1, 1))}
    operands |= {"skipped_updates": tf.ones((4,), tf.int32), "num_updates": tf.ones((), tf.int32)}
    operands |= {"momentum": tf.constant(0.9, tf.float64)}
    run = kernels._ops.batchnorm_remember
    run(**operands, unbiased=False, propagate=False)
    wrong = tf.ones(shape, operands[name].dtype)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        run(**(operands | {name: wrong}), unbiased=False, propagate=False)
    allowed = "be one number" if name == "num_updates" else "have one element per channel"
    assert f"batchnorm kernels: {name} must {allowed}" in str(caught.value)
