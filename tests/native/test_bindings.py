"""A kernel never touches memory that it was not given: what does not fit is refused, and named."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
import pytest

from batchnorm._native import library

SHAPE = (2, 1, 3, 4, 5)  # the view
NAN = np.float32(np.nan)


def sizes(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def pointer(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def call(
    dtype: int = 0, dims: tuple[int, ...] = SHAPE, x: Any = 0, w: Any = None, wdims: Any = None,
    scale: Any = None, activation: int = 0, mean: Any = 0, remainder: Any = 0,
) -> tuple[int, list[np.ndarray]]:  # fmt: skip
    """`bn_forward` as C has it: its code, and what it wrote; 0 stands for an array that fits."""
    x = np.ones(SHAPE, "float32") if isinstance(x, int) else x
    out = [np.full((1, 4), NAN) for _ in range(3)] + [np.full((1, 1), NAN), np.full(SHAPE, NAN)]
    given = [out[0] if isinstance(mean, int) else mean, out[1] if remainder == 0 else remainder]
    code = library.load().bn_forward(
        dtype, sizes(*dims), pointer(x), pointer(w), None if wdims is None else sizes(*wdims), 1e-3,
        pointer(scale), None, activation, *(pointer(one) for one in [*given, *out[2:]]),
    )  # fmt: skip
    return code, out


W = np.ones((2, 1, 3, 5), "float32")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"dtype": 4}, "dtype"),
    "negative type": ({"dtype": -1}, "dtype"),
    "negative size": ({"dims": (2, 1, -3, 4, 5)}, "size"),
    "product": ({"dims": (2**40, 1, 2**40, 4, 5)}, "size"),
    "no x": ({"x": None}, "NULL"),
    "no mean": ({"mean": None}, "NULL"),
    "no remainder": ({"remainder": None}, "NULL"),
    "no sizes of weights": ({"w": W}, "NULL"),
    "weights": ({"w": W, "wdims": (2, 1, 2, 5)}, "weight"),
    "empty weights": ({"w": W, "wdims": (0, 0, 0, 0)}, "weight"),
    "activation": ({"activation": 2}, "activation"),
    "negative weight": ({"w": -W, "wdims": W.shape}, "negative"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_c_refuses_and_writes_nothing(name: str) -> None:
    arguments, word = BAD[name]
    code, out = call(**arguments)
    assert code != 0
    assert word in library.load().bn_error(code).decode()
    assert all(np.isnan(array).all() for array in out)


def test_c_takes_what_fits() -> None:
    code, out = call(w=W, wdims=W.shape)
    assert code == 0
    assert all(np.isfinite(array).all() for array in out)


def test_every_code_has_its_sentence() -> None:
    kernels = library.load()
    sentences = [kernels.bn_error(code).decode() for code in range(1, 9)]
    assert all(sentences)
    assert len(set(sentences)) == 8
    with pytest.raises(RuntimeError) as caught:
        library.check(kernels, 3)
    assert str(caught.value) == f"batchnorm kernels: {sentences[2]}"


# The frameworks' operators. Each case replaces operands of a call that fits.

VECTORS = ("mean", "remainder", "variance", "count", "scale", "offset", "live")
SUMS = ("sum_dy", "sum_dy_xh")


def operands(name: str) -> dict[str, np.ndarray | None]:
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=SHAPE).astype("float32") for _ in range(2))
    given = {
        "x": x,
        "dy": dy,
        "residual": dy,
        "y": x,
        "weights": np.ones((2, 1, 3, 1, 5), "float32"),
    }
    given |= {one: np.ones((1, 4), "float32") for one in (*VECTORS, *SUMS)}
    given["count"] = np.full((1, 1), 30, "float32")
    wanted = {
        "moments": ("x", "weights"),
        "standardize": ("x", "weights", *VECTORS),
        "forward": ("x", "weights", "scale", "offset"),
        "backward": ("x", "dy", "weights", *VECTORS),
        "backward_sums": ("x", "dy", "weights", *VECTORS[:3], "scale", "offset"),
        "backward_input": ("x", "dy", "weights", *VECTORS, *SUMS),
        "standardize_add": ("x", "residual", "weights", *VECTORS),
        "forward_add": ("x", "residual", "weights", "scale", "offset"),
        "backward_add": ("x", "dy", "y", "weights", *VECTORS),
    }[name]
    return {one: given[one] for one in wanted}


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


WRONG: list[tuple[str, dict[str, np.ndarray]]] = [
    ("moments", {"x": ones(2, 3, 4)}),
    ("moments", {"x": ones(*SHAPE, dtype="int32")}),
    ("moments", {"weights": ones(2, 1, 2, 1, 5)}),
    ("moments", {"weights": ones(2, 4, 3, 1, 5)}),
    ("standardize", {"mean": ones(1, 3)}),
    ("standardize", {"mean": ones(1, 4, dtype="float16")}),
    ("standardize", {"variance": ones(1, 5)}),
    ("standardize", {"scale": ones(1, 1)}),
    ("standardize", {"offset": ones(1, 40)}),
    ("standardize", {"remainder": ones(1, 2)}),
    ("forward", {"scale": ones(1, 3)}),
    ("forward", {"offset": ones(1, 2)}),
    ("forward", {"weights": ones(3, 1, 3, 1, 5)}),
    ("backward", {"dy": ones(2, 1, 3, 4, 4)}),
    ("backward", {"dy": ones(*SHAPE, dtype="float16")}),
    ("backward", {"count": ones(3, 1)}),
    ("backward", {"live": ones(1, 3)}),
    ("backward", {"mean": ones(1, 1)}),
    ("backward", {"scale": ones(1, 8)}),
    ("backward_sums", {"dy": ones(2, 1, 3, 4, 4)}),
    ("backward_sums", {"variance": ones(1, 3)}),
    ("backward_sums", {"offset": ones(1, 8)}),
    ("backward_input", {"dy": ones(*SHAPE, dtype="float16")}),
    ("backward_input", {"count": ones(1, 4)}),
    ("backward_input", {"live": ones(1, 3)}),
    ("backward_input", {"sum_dy": ones(1, 3)}),
    ("backward_input", {"sum_dy_xh": ones(2, 4)}),
    ("standardize_add", {"residual": ones(2, 1, 3, 4, 4)}),
    ("standardize_add", {"residual": ones(*SHAPE, dtype="float16")}),
    ("forward_add", {"residual": ones(2, 1, 3, 4, 4)}),
    ("forward_add", {"scale": ones(1, 3)}),
    ("backward_add", {"y": ones(2, 1, 3, 4, 4)}),
    ("backward_add", {"y": ones(*SHAPE, dtype="float16")}),
    ("backward_add", {"dy": ones(2, 1, 3, 4, 4)}),
]
cases = pytest.mark.parametrize(
    ("name", "wrong"), WRONG, ids=[f"{n}-{next(iter(w))}" for n, w in WRONG]
)
EPSILON = 1e-3
FREEZING = ("standardize", "backward", "standardize_add", "backward_add")


@cases
def test_torch_refuses(name: str, wrong: dict[str, np.ndarray]) -> None:
    import torch

    importlib.import_module("batchnorm.backends.torch")  # defines the operators

    def run(given: dict[str, Any]) -> Any:
        x, *rest = [None if one is None else torch.tensor(one) for one in given.values()]
        how = (EPSILON, 0, False) if name in FREEZING else (EPSILON, 0)
        how = () if name == "moments" else how
        return getattr(torch.ops.batchnorm, name)(x, SHAPE, *rest, *how)

    run(operands(name))
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        run(operands(name) | wrong)


def test_torch_names_the_vector() -> None:
    import torch

    importlib.import_module("batchnorm.backends.torch")  # defines the operators

    x = torch.ones(SHAPE)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        torch.ops.batchnorm.forward(x, SHAPE, None, torch.ones(1, 3), None, EPSILON, 0)
    assert str(caught.value) == (
        "batchnorm kernels: a per-channel vector must be a contiguous torch.float32 of 4 elements; "
        "got torch.float32 of shape (1, 3)."
    )


def test_torch_refuses_weights_for_each_channel() -> None:
    import torch

    importlib.import_module("batchnorm.backends.torch")  # defines the operators

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        torch.ops.batchnorm.moments(torch.ones(SHAPE), SHAPE, torch.ones(2, 1, 3, 4, 5))
    assert str(caught.value) == (
        "batchnorm kernels: weights must have the shape [A, G or 1, B, 1, D]; got (2, 1, 3, 4, 5)."
    )


@cases
def test_jax_refuses(name: str, wrong: dict[str, np.ndarray]) -> None:
    import jax

    from batchnorm.backends.jax import kernels

    if name == "backward_add":
        pytest.skip("JAX differentiates the sum in its own operations")

    def run(given: dict[str, Any]) -> Any:
        given = {one: jax.numpy.asarray(value) for one, value in given.items()}
        x, weights = given.pop("x"), given.pop("weights")
        how = {"moments": (), "backward": (EPSILON, 0, False)}.get(name, (EPSILON, 0))
        more = {"residual": given.pop("residual")} if "residual" in given else {}
        rest = list(given.values())
        if name in ("standardize", "standardize_add"):
            rest = [rest]
        elif name == "backward_sums":
            dy, mean, remainder, variance, scale, offset = rest
            vectors = (mean, remainder, variance, None, scale, offset, None)
            return jax.block_until_ready(kernels.backward_sums(x, dy, weights, vectors, *how))
        elif name == "backward_input":
            dy, *vectors, sum_dy, sum_dy_xh = rest
            sums = [sum_dy, sum_dy_xh]
            return jax.block_until_ready(
                kernels.backward_input(x, dy, weights, vectors, sums, *how)
            )
        elif name == "backward":
            return jax.block_until_ready(kernels.backward(x, rest[0], weights, rest[1:], *how))
        kernel = getattr(kernels, name.removesuffix("_add"))
        return jax.block_until_ready(kernel(x, weights, *rest, *how, **more))

    run(operands(name))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError, IndexError, TypeError)):
        run(operands(name) | wrong)


def test_jax_names_the_vector() -> None:
    import jax

    from batchnorm.backends.jax import kernels

    x = jax.numpy.ones(SHAPE)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(kernels.forward(x, None, jax.numpy.ones((1, 3)), None, EPSILON, 0))
    assert "batchnorm kernels: scale must have one element per group and channel" in str(
        caught.value
    )


@cases
def test_tensorflow_refuses(name: str, wrong: dict[str, np.ndarray]) -> None:
    import tensorflow as tf

    from batchnorm.backends.tensorflow import kernels

    def run(given: dict[str, Any]) -> Any:
        given = {one: tf.constant(value) for one, value in given.items()}
        given["weights"] = tf.squeeze(given["weights"], 3)
        if name != "moments":
            given |= {"epsilon": tf.constant(EPSILON, tf.float64), "activation": 0}
        if name in FREEZING:
            given["frozen"] = False
        return getattr(kernels._ops, f"batchnorm_{name}")(**given)

    run(operands(name))
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.NotFoundError, TypeError)):
        run(operands(name) | wrong)


def test_tensorflow_names_the_vector() -> None:
    import tensorflow as tf

    from batchnorm.backends.tensorflow import kernels

    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        kernels.forward(tf.ones(SHAPE), None, tf.ones((1, 3)), None, EPSILON, 0)
    assert "batchnorm kernels: scale must have one element per group and channel" in str(
        caught.value
    )
