"""Blocks that run again in the backward pass, second derivatives, and several calls at once."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import reference
from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(14)
X = RNG.normal(2.0, 3.0, (8, 5)).astype("float32")
Z = RNG.normal(-1.0, 2.0, (8, 5)).astype("float32")
DY = RNG.normal(size=(8, 5)).astype("float32")


def new_layer(**options):
    layer = ours.BatchNormalization(**{"momentum": 0.5, "renorm": True, **options})
    layer.build(X.shape)
    return layer


def plain_step(step, **options):
    layer = new_layer(**options)
    return step(layer, X, DY, training=True), layer


def assert_same_statistics(layer, other):
    for a, b in zip(layer.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-5, atol=1e-6, err_msg=a.name)


def tensorflow_block(layer, graph, **_):
    import tensorflow as tf

    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.recompute_grad(lambda x: layer(x, training=True))(x)
            loss = tf.reduce_sum(y * DY)
        return tape.gradient(loss, [x, layer.gamma.value])

    return (tf.function(function) if graph else function)(tf.constant(X))


def jax_block(layer, **_):
    import jax
    import jax.numpy as jnp

    held = [one.value for one in layer.non_trainable_variables]

    def loss(x, parameters):
        call = jax.checkpoint(lambda p, x: layer.stateless_call(p, held, x, training=True))
        y, new = call(parameters, x)
        return (y * DY).sum(), new

    parameters = [one.value for one in layer.trainable_variables]
    (dx, (dgamma, _)), new = jax.grad(loss, (0, 1), has_aux=True)(jnp.asarray(X), parameters)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    return dx, dgamma


def torch_block(layer, reentrant, **_):
    import torch
    from torch.utils.checkpoint import checkpoint

    x = torch.tensor(X, requires_grad=True)
    y = checkpoint(lambda x: layer(x, training=True), x, use_reentrant=reentrant)
    (y * torch.tensor(DY)).sum().backward()
    return x.grad, layer.gamma.value.grad


BLOCKS = {
    "tensorflow": (tensorflow_block, [{"graph": False}, {"graph": True}]),
    "jax": (jax_block, [{}]),
    "torch": (torch_block, [{"reentrant": False}, {"reentrant": True}]),
}
BLOCK, WAYS = BLOCKS[keras.backend.backend()]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_checkpointed_block_updates_once(way, step):
    layer = new_layer()
    BLOCK(layer, **way)
    assert_same_statistics(layer, plain_step(step)[1])
    assert int(array(layer.num_updates)) == 1


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{"renorm": False}, {"renorm": True}, {"renorm": False, "statistics": "moving"}],
    ids=["plain", "renorm", "moving"],
)
def test_a_checkpointed_block_has_the_gradients_of_a_plain_one(way, options, step):
    # renorm's r and d, and the moving statistics, must be those of the call that is recomputed
    layer = new_layer(**options)
    for z in (Z, X):
        layer(z, training=True)
    dx, dgamma = BLOCK(layer, **way)
    other = new_layer(**options)
    for z in (Z, X):
        other(z, training=True)
    want = step(other, X, DY, training=True)
    np.testing.assert_allclose(array(dx), want["dx"], atol=1e-5)
    np.testing.assert_allclose(array(dgamma), want["gamma"], rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"renorm": True}], ids=["plain", "renorm"])
@pytest.mark.parametrize("mode", ["full", "list_of_layers"])
def test_rematerialization_by_keras_equals_a_plain_layer_in_fit(mode, options):
    with keras.RematScope(mode=mode, layer_names=["bn"]):
        layer = ours.BatchNormalization(momentum=0.5, name="bn", **options)
    plain = ours.BatchNormalization(momentum=0.5, name="plain", **options)
    for one in (layer, plain):
        model = keras.Sequential([keras.layers.Input((5,)), one])
        model.compile("sgd", "mse")
        model.fit(X, Z, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(layer.variables, plain.variables, strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-4, atol=1e-6, err_msg=a.name)


def test_rematerialization_takes_masks_and_weights():
    with keras.RematScope(mode="full"):
        layer = ours.BatchNormalization(momentum=0.0)
    weights = np.arange(8, dtype="float32")
    mask = np.arange(8) % 3 != 0
    layer.build(X.shape)
    layer(X, training=True, mask=mask, batch_weights=weights)
    want = np.average(X, 0, weights * mask)
    np.testing.assert_allclose(array(layer.moving_mean), want, atol=1e-5)


# Second derivatives.


def penalty_tensorflow(layer):
    import tensorflow as tf

    x = tf.constant(X)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * DY)
        slope = inner.gradient(loss, x)
        penalty = tf.reduce_sum(slope * slope)
    return outer.gradient(penalty, x)


def penalty_jax(layer):
    import jax
    import jax.numpy as jnp

    trainable = [one.value for one in layer.trainable_variables]
    held = [one.value for one in layer.non_trainable_variables]

    def loss(x):
        y, new = layer.stateless_call(trainable, held, x, training=True)
        return (y * DY).sum(), new

    def penalty(x):
        slope, new = jax.grad(loss, has_aux=True)(x)
        return (slope * slope).sum(), new

    gradient, new = jax.grad(penalty, has_aux=True)(jnp.asarray(X))
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    return gradient


def penalty_torch(layer):
    import torch

    x = torch.tensor(X, requires_grad=True)
    loss = (layer(x, training=True) * torch.tensor(DY)).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad((slope * slope).sum(), x)[0]


PENALTY = {"tensorflow": penalty_tensorflow, "jax": penalty_jax, "torch": penalty_torch}[
    keras.backend.backend()
]


def test_a_gradient_penalty_has_the_right_gradient():
    layer = new_layer(renorm=False)
    state = {"moving_mean": np.zeros(5), "moving_variance": np.ones(5)}
    first = reference.batch_norm(X, {}, state, training=True, dy=DY)
    want = 2 * reference.hessian_vector_product(X, first.dx, DY, {}, state, training=True)
    got = array(PENALTY(layer))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_a_gradient_penalty_updates_once():
    layer = new_layer()
    PENALTY(layer)
    assert int(array(layer.num_updates)) == 1


def test_a_gradient_penalty_loop_remembers_every_step():
    layer = new_layer(renorm=False)
    for _ in range(3):
        PENALTY(layer)
    np.testing.assert_allclose(array(layer.moving_mean), X.mean(0) * (1 - 0.5**3), rtol=1e-5)


# Several calls before one backward pass.


def gradient_of_two_calls(engine, layer):
    """d sum(y(X) * DY + y(Z) * DY) by gamma, of two calls before any backward pass."""
    x, z, dy = (engine.tensor(one) for one in (X, Z, DY))
    if engine.name == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            ys = [layer(one, training=True) for one in (x, z)]
            loss = tf.add_n([tf.reduce_sum(y * dy) for y in ys])
        return tape.gradient(loss, layer.gamma.value)
    if engine.name == "torch":
        ys = [layer(one, training=True) for one in (x, z)]
        sum((y * dy).sum() for y in ys).backward()
        return layer.gamma.value.grad
    import jax

    held = [one.value for one in layer.non_trainable_variables]

    def loss(parameters):
        y, new = layer.stateless_call(parameters, held, x, training=True)
        w, new = layer.stateless_call(parameters, new, z, training=True)
        return ((y + w) * dy).sum(), new

    parameters = [one.value for one in layer.trainable_variables]
    (dgamma, _), new = jax.grad(loss, has_aux=True)(parameters)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    return dgamma


@pytest.mark.parametrize("options", [{}, {"renorm": True}], ids=["plain", "renorm"])
def test_two_calls_before_one_backward_pass(engine, options, step):
    layer = new_layer(**{"renorm": False, **options})
    got = array(gradient_of_two_calls(engine, layer))
    other = new_layer(**{"renorm": False, **options})
    want = sum(step(other, one, DY, training=True)["gamma"] for one in (X, Z))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert_same_statistics(layer, other)


@pytest.mark.parametrize("options", [{"statistics": "moving"}, {}], ids=["moving", "inference"])
def test_statistics_that_move_before_the_backward_pass_leave_its_gradients(engine, options, step):
    layer = new_layer(renorm=False, **options)
    layer(Z, training=True)
    mean, variance = (array(one).copy() for one in (layer.moving_mean, layer.moving_variance))
    state = {"moving_mean": mean, "moving_variance": variance}
    want = reference.batch_norm(X, {"gamma": np.ones(5)}, state, training=False, dy=DY)
    got = gradients_before_another_call(engine, layer, training=bool(options))
    np.testing.assert_allclose(array(got[0]), want.dx, atol=1e-5)
    np.testing.assert_allclose(array(got[1]), want.gradients["gamma"], rtol=1e-4, atol=1e-4)


def gradients_before_another_call(engine, layer, training):
    """d sum(y(X) * DY) by X and gamma, where the statistics moved between y(X) and d."""
    x, z, dy = (engine.tensor(one) for one in (X, Z, DY))
    if engine.name == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=training) * dy)
        layer(z, training=True)
        return tape.gradient(loss, [x, layer.gamma.value])
    if engine.name == "torch":
        x.requires_grad_()
        loss = (layer(x, training=training) * dy).sum()
        layer(z, training=True)
        loss.backward()
        return x.grad, layer.gamma.value.grad
    import jax

    held = [one.value for one in layer.non_trainable_variables]

    def loss(x, parameters):
        return (layer.stateless_call(parameters, held, x, training=training)[0] * dy).sum()

    dx, (dgamma, _) = jax.grad(loss, (0, 1))(x, [one.value for one in layer.trainable_variables])
    return dx, dgamma


def test_an_inference_between_two_training_calls_changes_nothing(engine):
    layer, other = new_layer(), new_layer()
    for one in (X, Z):
        layer(one, training=True)
        other(one, training=True)
        other(10 * one, training=False)
    assert_same_statistics(layer, other)
