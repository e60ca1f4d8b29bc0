"""Compilers and transformations, with fused=True: it raises where the kernels cannot be used."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from batchnorm.backends import why_not

X = np.random.default_rng(0).normal(1.0, 2.0, (6, 4, 3)).astype("float32")


XLA = "XLA (jit_compile=True) cannot hold the native kernels."


def normalized(engine: engines.Engine, x: Any, fused: bool | None = None) -> Any:
    parameters, state = batchnorm.init(x)
    return batchnorm.batch_norm(x, parameters, state, training=True, fused=fused)[0]


def test_fused_is_the_kernel_and_false_is_not() -> None:
    import jax

    x = jax.numpy.asarray(X)
    for fused, there in ((True, True), (None, True), (False, False)):
        text = jax.jit(lambda x, fused=fused: normalized(None, x, fused)).lower(x).as_text()
        assert ("batchnorm_forward" in text) is there


def test_fused_must_be_one_of_three() -> None:
    import torch

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        normalized(engines.ENGINES["torch"], torch.tensor(X), fused="yes")
    assert str(caught.value) == "batch_norm: fused must be one of None, True, False; got 'yes'."


def test_tensorflow_xla_takes_the_composite_path() -> None:
    import tensorflow as tf

    seen = []

    def step(x: Any) -> Any:
        seen.append(why_not(x))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = normalized(None, x)
        return y, tape.gradient(y, x, X)

    inner = tf.function(step)  # inside of one that XLA compiles
    outer = tf.function(lambda x: inner(x), jit_compile=True)
    inside_out = tf.function(lambda x: tf.function(step, jit_compile=True)(x))
    results = [
        run(tf.constant(X))
        for run in (step, tf.function(step, jit_compile=True), outer, inside_out)
    ]
    assert seen == [None, XLA, XLA, XLA]
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)

    refused = tf.function(lambda x: normalized(None, x, fused=True), jit_compile=True)
    with pytest.raises(ValueError, match=r"fused must be None or False here; got True\. XLA"):
        refused(tf.constant(X))


@pytest.mark.xfail(reason="TensorFlow 2.21 reuses the trace, and XLA cannot hold the kernels")
def test_a_traced_function_called_from_xla_does_not_crash() -> None:
    """It holds the kernels already when XLA meets it."""
    import tensorflow as tf

    inner = tf.function(lambda x: normalized(None, x))
    expected = inner(tf.constant(X))
    got = tf.function(lambda x: inner(x), jit_compile=True)(tf.constant(X))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_tensorflow_1_graph_and_session() -> None:
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4, 3))
        y = normalized(None, x, fused=True)
        (dx,) = tf.compat.v1.gradients(y, x, tf.ones_like(y) * X)
        (second,) = tf.compat.v1.gradients(tf.reduce_sum(dx * dx), x)
        types = {op.type for op in session.graph.get_operations()}
        assert {"BatchnormForward", "BatchnormBackward"} <= types
        assert "BatchnormMoments" not in types  # one kernel, though the batch is open
        found = session.run([y, dx, second], {x: X})
    engine = engines.ENGINES["torch"]
    import torch

    at = torch.tensor(X, requires_grad=True)
    expected = normalized(engine, at, fused=False)
    (slope,) = torch.autograd.grad(expected, at, torch.tensor(X), create_graph=True)
    (curve,) = torch.autograd.grad((slope * slope).sum(), at)
    for got, want in zip(found, (expected, slope, curve), strict=True):
        np.testing.assert_allclose(got, want.detach(), atol=1e-5)


@pytest.mark.keras
def test_keras_fits_with_jit_compile() -> None:
    import keras

    from batchnorm.keras import BatchNormalization

    model = keras.Sequential([keras.Input((4, 3)), BatchNormalization(), keras.layers.Dense(1)])
    compiles = keras.backend.backend() != "torch"  # there it is Inductor, which needs a minute
    model.compile("sgd", "mse", jit_compile=compiles)
    history = model.fit(X, X[..., :1], epochs=2, batch_size=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def torch_step(fused: bool | None) -> Any:
    import torch

    upstream = torch.tensor(X)

    def step(x: Any) -> Any:
        return (normalized(engines.ENGINES["torch"], x, fused) * upstream).sum()

    return step


def test_torch_compiles_the_whole_graph() -> None:
    import torch

    def run(step: Any) -> Any:
        x = torch.tensor(X, requires_grad=True)
        value = step(x)
        value.backward()
        return value.detach(), x.grad

    torch._dynamo.reset()
    compiled = torch.compile(torch_step(True), fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled), run(torch_step(False)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_torch_func() -> None:
    import torch

    x = torch.tensor(X)
    expected = torch.func.grad(torch_step(False))(x)
    torch.testing.assert_close(torch.func.grad(torch_step(True))(x), expected)
    pair = torch.stack([2 * x, x])
    values = torch.func.vmap(torch_step(True))(pair)
    torch.testing.assert_close(values, torch.stack([torch_step(False)(one) for one in pair]))
    slopes = torch.func.vmap(torch.func.grad(torch_step(True)))(pair)
    torch.testing.assert_close(slopes[1], expected)

    def curve(fused: bool) -> Any:
        slope = torch.func.grad(torch_step(fused))
        return torch.func.grad(lambda x: (slope(x) ** 2).sum())(x)

    curves = curve(True), curve(False)
    torch.testing.assert_close(curves[0], curves[1], atol=1e-5, rtol=1e-4)


# torch's own rules for derivatives (2.13) are scripts
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_torch_differentiates_forward_by_the_composite_path() -> None:
    """Past torch's dispatcher a kernel would lose the tangents without a word."""
    import torch
    from torch.autograd import forward_ad

    x = torch.tensor(X, dtype=torch.float64)
    tangent = x**2
    expected = torch.autograd.functional.jvp(torch_step(False), x, tangent)
    got = torch.func.jvp(torch_step(None), (x,), (tangent,))
    torch.testing.assert_close(got, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        reason = "The native kernels have no forward-mode derivative."
        assert why_not(dual) == reason
        torch.testing.assert_close(forward_ad.unpack_dual(torch_step(None)(dual))[1], expected[1])
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
            torch_step(True)(dual)
    message = f"batch_norm: fused must be None or False here; got True. {reason}"
    assert str(caught.value) == message


def test_torch_takes_many_gradients_at_once() -> None:
    import torch

    x = torch.tensor(X)
    jacobians = [
        torch.autograd.functional.jacobian(
            functools.partial(normalized, engines.ENGINES["torch"], fused=fused), x, vectorize=fused
        )
        for fused in (True, False)
    ]
    torch.testing.assert_close(*jacobians)

    def loss(x: Any) -> Any:
        return (torch_step(True)(x) ** 3).sum()

    hessians = [
        torch.autograd.functional.hessian(loss, x, vectorize=vectorize)
        for vectorize in (True, False)
    ]
    torch.testing.assert_close(*hessians, atol=1e-4, rtol=1e-4)


def test_torch_exports() -> None:
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return normalized(engines.ENGINES["torch"], x, True)

    program = torch.export.export(Module(), (torch.tensor(X),))
    assert "batchnorm.forward" in str(program.graph)
    torch.testing.assert_close(program.module()(torch.tensor(X)), Module()(torch.tensor(X)))


def test_torch_operators_keep_their_contracts() -> None:
    import torch

    vector, gamma = torch.rand(1, 3), torch.rand(3)
    dense, dy = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    sizes, weights = (2, 1, 1, 3, 20), torch.rand(2, 1, 1, 1, 20)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    given = (vector, None, vector, torch.full((1, 1), 40.0), gamma, vector, None, 1e-3, 0, False)
    orders = dense, dense.to(memory_format=torch.channels_last), dense.mT.contiguous().mT
    for x in (one.requires_grad_() for one in orders):
        for name, operands in (
            ("moments", (x.detach(), sizes, weights)),
            ("standardize", (x, sizes, weights, *given)),
            ("forward", (x, sizes, weights, gamma, vector, 1e-3, 1)),
            ("backward", (x, sizes, dy, weights, *given)),
            ("standardize_add", (x, sizes, dy, weights, *given)),
            ("forward_add", (x, sizes, dy, weights, gamma, vector, 1e-3, 1)),
            ("backward_add", (x, sizes, dy, dy, weights, *given)),
        ):
            operator = getattr(torch.ops.batchnorm, name).default
            torch.library.opcheck(operator, operands, test_utils=checks)


def test_jax_transformations_compose() -> None:
    import jax

    def step(x: Any, fused: bool | None = True) -> Any:
        return (normalized(None, x, fused) * X).sum()

    x = jax.numpy.asarray(X)
    expected = jax.grad(lambda x: step(x, False))(x)
    pair = jax.numpy.stack([2 * x, x])
    got = jax.jit(jax.vmap(jax.grad(step)))(pair)[1]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.checkpoint(step)))(x), expected, atol=1e-5)


def test_an_export_from_jax_holds_no_kernels_and_says_why() -> None:
    import jax
    import jax.export

    x = jax.numpy.asarray(np.random.default_rng(3).normal(5.0, 2.0, (8, 4)).astype("float32"))
    parameters, state = batchnorm.init(x)
    reasons = []

    def function(x: Any) -> Any:
        reasons.append(batchnorm.why_not(x))
        return batchnorm.batch_norm(x, parameters, state, training=True)[0]

    program = jax.export.deserialize(jax.export.export(jax.jit(function))(x).serialize())
    assert reasons == ["An export (jax.export) cannot hold native kernels."]
    np.testing.assert_allclose(program.call(x), function(x), rtol=1e-6, atol=1e-6)
    assert reasons[1:] == [None]
