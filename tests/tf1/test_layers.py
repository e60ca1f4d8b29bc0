"""`tf.layers` batch normalization: scopes, sharing, unknown sizes, what graphs are made of."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
layers = tf1.layers.batch_normalization
RNG = np.random.default_rng(2)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")


def run(session, fetches, feed):
    session.run(v1.global_variables_initializer())
    return session.run(fetches, feed)


def names():
    return [one.op.name for one in v1.global_variables()]


def placeholder(*shape):
    return v1.placeholder(tf.float32, shape)


def each_names(function):
    """What variables and outputs are called, after a few ways of calling the function."""
    with tf.Graph().as_default():
        x = placeholder(*X.shape)
        outputs = [function(x), function(x), function(x, name="q")]
        with v1.variable_scope("outer"):
            outputs += [function(x), function(x, name="inner")]
        with v1.name_scope("tower"):
            outputs += [function(x), function(x, name="named")]
        with v1.variable_scope("outer", reuse=True):
            outputs.append(function(x, name="inner"))
        outputs += [function(x, name="auto", reuse=v1.AUTO_REUSE) for _ in range(2)]
        partitioner = v1.fixed_size_partitioner(2)
        with v1.variable_scope("split", partitioner=partitioner):
            outputs.append(function(x, renorm=True))
        return [one.name for one in outputs], names()


def test_scopes_name_variables_and_outputs_as_in_the_original():
    assert each_names(layers) == each_names(tf1_originals.batch_normalization)


def test_a_layer_object_opens_its_scope_at_the_first_call(session):
    layer = tf1.layers.BatchNormalization(name="bn")
    x = placeholder(*X.shape)
    outputs = [layer(x, training=True), layer.apply(x)]
    assert [one.op.name for one in outputs] == ["bn/FusedBatchNormV3", "bn/FusedBatchNormV3_1"]
    assert layer.scope_name == "bn"
    assert names() == ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
    assert [one.op.name for one in layer.trainable_variables] == ["bn/gamma", "bn/beta"]
    assert layer.variables == layer.trainable_variables + layer.non_trainable_variables
    assert layer.dtype == tf.float32
    assert layer.get_updates_for(x) == layer.updates
    assert len(layer.updates) == 2


def test_a_layer_can_be_built_before_its_first_call(session):
    layer = tf1.layers.BatchNormalization(name="bn", scale=False)
    layer.build((None, 4))
    assert layer.gamma is None
    assert names() == ["bn/beta", "bn/moving_mean", "bn/moving_variance"]
    layer(placeholder(6, 4))
    assert len(names()) == 3


def test_a_layer_can_be_frozen_later(session):
    layer = tf1.layers.BatchNormalization()
    layer(placeholder(6, 4), training=True)
    layer.trainable = False
    layer(placeholder(6, 4), training=True)
    assert len(layer.updates) == 2
    assert layer.trainable_variables == []
    assert len(layer.non_trainable_variables) == 4


def test_a_mask_excludes_positions(session):
    mask = RNG.random(X.shape[:3]) < 0.5
    x = placeholder(*X.shape)
    layer = tf1.layers.BatchNormalization(momentum=0.0)
    layer(x, training=True, mask=mask)
    run(session, layer.updates, {x: X})
    np.testing.assert_allclose(session.run(layer.moving_variance), X[mask].var(0), rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"fused": False},
                                     {"virtual_batch_size": 2}], ids=str)  # fmt: skip
@pytest.mark.parametrize("open_sizes", [(0,), (1, 2), (0, 1, 2)], ids=str)
def test_sizes_may_be_unknown_until_the_run(session, options, open_sizes):
    shape = [None if i in open_sizes else size for i, size in enumerate(X.shape)]
    x, whole = placeholder(*shape), placeholder(*X.shape)
    open_y = layers(x, training=True, **options)
    y = layers(whole, training=True, **options)
    assert open_y.shape.as_list() == shape
    slopes = [tf.gradients(tf.square(one), given)[0] for one, given in ((open_y, x), (y, whole))]
    got, want, *slopes = run(session, [open_y, y, *slopes], {x: X, whole: X})
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(*slopes, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4}], ids=str)
def test_an_empty_batch_changes_no_statistics(session, options):
    """D10: the original wrote NaN."""
    x = placeholder(None, 4)
    layer = tf1.layers.BatchNormalization(**options)
    y = layer(x, training=True)
    got, _ = run(session, [y, layer.updates], {x: np.ones((0, 4))})
    assert got.shape == (0, 4)
    mean, variance = session.run([layer.moving_mean, layer.moving_variance])
    np.testing.assert_array_equal(np.ravel(mean), np.zeros(4))
    np.testing.assert_array_equal(np.ravel(variance), np.ones(4))


@pytest.mark.parametrize("trainable", [True, False])
def test_regularizers_join_the_losses_once(session, trainable):
    x = placeholder(6, 4)
    options = {"gamma_regularizer": tf.reduce_sum, "beta_regularizer": lambda beta: None}
    layers(x, name="bn", trainable=trainable, **options)
    layers(x, name="bn", reuse=True, trainable=trainable, **options)
    losses = v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES)
    assert [one.op.name for one in losses] == ["bn/gamma/Regularizer/Sum"]


def test_a_constraint_is_kept_for_the_optimizer(session):
    layer = tf1.layers.BatchNormalization(gamma_constraint=tf.nn.relu)
    layer(placeholder(6, 4))
    assert layer.gamma.constraint is tf.nn.relu
    assert layer.beta.constraint is None


def test_keras_names_are_understood(session):
    layer = tf1.layers.BatchNormalization(
        gamma_initializer="zeros", beta_initializer="ones", gamma_regularizer="l2"
    )
    layer(placeholder(6, 4))
    gamma, beta = run(session, [layer.gamma, layer.beta], {})
    assert not gamma.any()
    assert beta.all()
    assert len(layer.losses) == 1
    assert layer.get_losses_for(None) == layer.losses


def test_no_initializer_is_the_one_of_the_scope(session):
    with v1.variable_scope("net", initializer=v1.constant_initializer(4.0)):
        layer = tf1.layers.BatchNormalization(
            beta_initializer=None, moving_variance_initializer=None, renorm=True
        )
        layer(placeholder(6, 4))
    beta, stddev = run(session, [layer.beta, layer.moving_stddev], {})
    np.testing.assert_array_equal(beta, np.full(4, 4.0))
    np.testing.assert_array_equal(stddev, np.full(4, 2.0))


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"virtual_batch_size": 2},
                                     {"axis": [1, 3]}, {"axis": 1}], ids=str)  # fmt: skip
@pytest.mark.parametrize("training", [True, False, "placeholder"])
def test_the_graph_holds_our_kernels_and_no_other(session, options, training):
    fed = v1.placeholder(tf.bool, ()) if training == "placeholder" else training
    x = placeholder(*X.shape)
    tf.gradients(layers(x, training=fed, **options), x)
    graph = session.graph.as_graph_def()
    kinds = {one.op for one in graph.node}
    for function in graph.library.function:  # what a conditional runs
        kinds |= {one.op for one in function.node_def}
    # a graph of inference may leave this process, and holds TensorFlow's own operations
    assert ("BatchnormBackward" in kinds) is (training is not False)
    assert "Mean" not in kinds
    assert training is not True or "FusedBatchNormV3" not in kinds


@pytest.mark.parametrize("fused", [None, False])
def test_second_derivatives_are_exact(session, fused):
    """D31: the original's were 6 % off."""
    x = v1.placeholder(tf.float64, (5, 3))
    y = layers(x, training=True, fused=fused, scale=False, center=False, epsilon=0.1)
    (slope,) = tf.gradients(tf.reduce_sum(y**3), x)
    (curvature,) = tf.gradients(tf.reduce_sum(slope**2), x)
    value, other = RNG.normal(size=(2, 5, 3))
    step = 1e-6
    got = run(session, curvature, {x: value})
    ahead, behind = (
        np.sum(session.run(slope, {x: value + sign * step * other}) ** 2) for sign in (1, -1)
    )
    np.testing.assert_allclose(np.sum(got * other), (ahead - behind) / (2 * step), rtol=1e-6)


class Model(tf.Module):
    """A model that keeps TensorFlow 1 variables between eager calls."""

    def __init__(self):
        super().__init__()
        self.decorated = _tracking()(Model.forward)

    def forward(self, x, training):
        with v1.variable_scope("net"):
            y = layers(x, training=training, name="bn", momentum=0.5)
            return tf1.contrib.layers.batch_norm(
                y, is_training=training, scope="other", updates_collections=None
            )

    def __call__(self, x, training):
        return self.decorated(self, x, training)


def _tracking():
    from tf_keras.src.legacy_tf_layers import variable_scope_shim

    return variable_scope_shim.track_tf1_style_variables


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
def test_variables_persist_and_move_inside_a_variable_store(compiled):
    model = Model()
    x = tf.constant(X)
    call = tf.function(model, autograph=False) if compiled else model
    for _ in range(2):
        call(x, True)
    found = {one.name: one.numpy() for one in model.variables}
    assert set(found) == {
        f"net/{scope}/{name}:0"
        for scope, parameters in (("bn", ["gamma", "beta"]), ("other", ["beta"]))
        for name in (*parameters, "moving_mean", "moving_variance")
    }
    want = 0.75 * X.mean((0, 1, 2))
    np.testing.assert_allclose(found["net/bn/moving_mean:0"], want, rtol=1e-5)
    call(x, False)
    np.testing.assert_allclose(
        {one.name: one.numpy() for one in model.variables}["net/bn/moving_mean:0"], want, rtol=1e-5
    )


def test_a_wrapped_function_is_a_graph():
    function = v1.wrap_function(
        lambda x: layers(x, training=True, name="bn"), [tf.TensorSpec(X.shape, tf.float32)]
    )
    got = function(tf.constant(X)).numpy()
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-5)
