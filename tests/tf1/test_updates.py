"""When statistics move: only with the update ops, in place, once for each application (D32)."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
layers, contrib = tf1.layers.batch_normalization, tf1.contrib.layers.batch_norm
RNG = np.random.default_rng(5)
X = RNG.normal(2.0, 3.0, (6, 4)).astype("float32")
OTHER = RNG.normal(-1.0, 1.0, (6, 4)).astype("float32")
MODES = [{}, {"renorm": True}, {"fused": False}, {"zero_debias_moving_mean": True}]

each_mode = pytest.mark.parametrize("options", MODES, ids=str)


def state_of(session):
    return {one.op.name: session.run(one) for one in v1.global_variables()}


def moved(session, fetches, feed):
    """Whether each variable is another after running the fetches."""
    before = state_of(session)
    session.run(fetches, feed)
    after = state_of(session)
    return {name.split("/")[-1]: not np.array_equal(before[name], after[name]) for name in before}


@each_mode
def test_fetching_the_output_alone_moves_nothing(session, options):
    x = v1.placeholder(tf.float32, X.shape)
    y = contrib(x, **options)
    session.run(v1.global_variables_initializer())
    assert not any(moved(session, [y, tf.gradients(y, x)], {x: X}).values())


@each_mode
def test_fetching_the_updates_alone_moves_all_of_the_state(session, options):
    x = v1.placeholder(tf.float32, X.shape)
    contrib(x, **options)
    session.run(v1.global_variables_initializer())
    changed = moved(session, v1.get_collection(v1.GraphKeys.UPDATE_OPS), {x: X})
    assert changed.pop("beta") is False
    assert all(changed.values())


@pytest.mark.parametrize("collections", [None, (), [], "mine", ["mine", "yours"]], ids=str)
def test_updates_go_where_they_are_sent(session, collections):
    x = v1.placeholder(tf.float32, X.shape)
    contrib(x, updates_collections=collections)
    found = {name: len(v1.get_collection(name)) for name in ("update_ops", "mine", "yours")}
    named = [collections] if isinstance(collections, str) else collections or []
    assert found == {name: 2 if name in named else 0 for name in found}


def test_an_equal_name_is_the_same_collection(session):
    """D24: the original asked whether it was the same object, and refused renorm."""
    x = v1.placeholder(tf.float32, X.shape)
    contrib(x, updates_collections="".join(["update", "_ops"]), renorm=True, scale=True)
    assert len(v1.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2
    assert v1.global_variables()[0].op.name == "BatchNorm/gamma"


@each_mode
@pytest.mark.parametrize("fetched", ["output", "gradient"])
def test_in_place_the_output_and_its_gradient_move_the_state(session, options, fetched):
    x = v1.placeholder(tf.float32, X.shape)
    y = contrib(x, updates_collections=None, **options)
    fetches = {"output": y, "gradient": tf.gradients(tf.square(y), x)}[fetched]
    session.run(v1.global_variables_initializer())
    changed = moved(session, fetches, {x: X})
    assert changed.pop("beta") is False
    assert all(changed.values())


@each_mode
@pytest.mark.parametrize("in_place", [False, True])
def test_a_placeholder_that_is_false_moves_nothing(session, options, in_place):
    x, training = v1.placeholder(tf.float32, X.shape), v1.placeholder(tf.bool, ())
    where = {"updates_collections": None} if in_place else {}
    y = contrib(x, is_training=training, **where, **options)
    session.run(v1.global_variables_initializer())
    fetches = [y, v1.get_collection(v1.GraphKeys.UPDATE_OPS)]
    assert not any(moved(session, fetches, {x: X, training: False}).values())
    assert moved(session, fetches, {x: X, training: True})["moving_mean"]


@pytest.mark.parametrize("training", [False, 0, np.False_], ids=repr)
def test_static_inference_makes_no_updates(session, training):
    layers(v1.placeholder(tf.float32, X.shape), training=training)
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
    assert not [one.name for one in session.graph.get_operations() if "MovingAvg" in one.name]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, **kw: layers(x, training=True, **kw),
        contrib,
        lambda x, **kw: contrib(x, updates_collections="update_ops", fused=False, **kw),
        lambda x, **kw: contrib(x, zero_debias_moving_mean=True, **kw),
    ],
    ids=["layers", "contrib", "contrib, not fused", "contrib, zero-debias"],
)
def test_a_frozen_function_normalizes_with_the_batch_and_updates_nothing(session, function):
    """D25: the original's three paths made 0, 2 and 2 updates."""
    x = v1.placeholder(tf.float32, X.shape)
    y = function(x, trainable=False)
    session.run(v1.global_variables_initializer())
    np.testing.assert_allclose(session.run(y, {x: X}).mean(0), 0, atol=1e-6)
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
    assert v1.trainable_variables() == []


def expected_after_two_steps(function, options):
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, X.shape)
        function(x, **options)
        session.run(v1.global_variables_initializer())
        for batch in (X, OTHER):
            session.run(v1.get_collection(v1.GraphKeys.UPDATE_OPS), {x: batch})
        return state_of(session)


TWICE = [
    (layers, {"training": True, "momentum": 0.5, "name": "bn"}),
    (layers, {"training": True, "momentum": 0.5, "name": "bn", "virtual_batch_size": 2}),
    (contrib, {"decay": 0.5, "scope": "bn"}),
    (contrib, {"decay": 0.5, "scope": "bn", "zero_debias_moving_mean": True}),
]


@pytest.mark.parametrize(
    ("function", "options"), TWICE, ids=["layers", "ghost batches", "contrib", "zero-debias"]
)
def test_two_applications_in_one_step_give_the_answer_of_two_steps(session, function, options):
    """D32: the original lost an update, or not, by chance."""
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    function(x, **options)
    function(z, reuse=True, **options)
    want = expected_after_two_steps(function, options)
    updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    assert len(updates) == 4
    for _ in range(5):
        session.run(v1.global_variables_initializer())
        session.run(updates, {x: X, z: OTHER})
        for name, value in state_of(session).items():
            np.testing.assert_allclose(value, want[name], rtol=1e-6, err_msg=name)


def test_two_applications_with_renorm_both_normalize_with_the_state_before_the_step(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    options = {"renorm": True, "training": True, "name": "bn", "renorm_momentum": 0.5}
    y, w = layers(x, **options), layers(z, reuse=True, **options)
    session.run(v1.global_variables_initializer())
    alone = session.run([y, w], {x: X, z: OTHER})
    updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    for _ in range(5):
        session.run(v1.global_variables_initializer())
        both, _ = session.run([[y, w], updates], {x: X, z: OTHER})
        np.testing.assert_array_equal(both, alone)


def test_a_layer_that_is_called_twice_updates_like_two_steps(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    layer = tf1.layers.BatchNormalization(momentum=0.5, name="bn")
    for one in (x, z):
        layer(one, training=True)
    assert len(layer.updates) == 4
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == layer.updates
    session.run(v1.global_variables_initializer())
    session.run(layer.updates, {x: X, z: OTHER})
    want = 0.25 * X.mean(0) + 0.5 * OTHER.mean(0)
    np.testing.assert_allclose(session.run(layer.moving_mean), want, rtol=1e-5)


def towers(session, inputs):
    """The same network on several inputs, as code for several GPUs builds it."""
    for i, x in enumerate(inputs):
        with (
            v1.variable_scope(v1.get_variable_scope(), reuse=i > 0),
            v1.name_scope(f"tower_{i}"),
        ):
            layers(x, training=True, momentum=0.5, name="bn")
    session.run(v1.global_variables_initializer())
    return [
        v1.get_collection(v1.GraphKeys.UPDATE_OPS, scope=f"tower_{i}") for i in range(len(inputs))
    ]


def test_the_updates_of_the_first_tower_run_without_the_others(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    first, last = towers(session, [x, z])
    assert [len(first), len(last)] == [2, 2]
    session.run(first, {x: X})
    np.testing.assert_allclose(state_of(session)["bn/moving_mean"], 0.5 * X.mean(0), rtol=1e-5)


def test_the_updates_of_the_last_tower_run_those_of_all_towers(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    _, last = towers(session, [x, z])
    session.run(last, {x: X, z: OTHER})
    want = 0.25 * X.mean(0) + 0.5 * OTHER.mean(0)
    np.testing.assert_allclose(state_of(session)["bn/moving_mean"], want, rtol=1e-5)


def test_the_output_of_a_second_application_does_not_need_the_first(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    layer = tf1.layers.BatchNormalization(renorm=True)
    layer(x, training=True)
    w = layer(z, training=True)
    session.run(v1.global_variables_initializer())
    assert not any(moved(session, w, {z: OTHER}).values())


def test_in_place_a_second_application_can_run_without_the_first(session):
    x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
    options = {"updates_collections": None, "decay": 0.5, "scope": "bn"}
    contrib(x, **options)
    w = contrib(z, reuse=True, **options)
    session.run(v1.global_variables_initializer())
    session.run(w, {z: OTHER})
    got = state_of(session)["bn/moving_mean"]
    np.testing.assert_allclose(got, 0.5 * OTHER.mean(0), rtol=1e-5)


def test_in_place_two_applications_of_one_input_update_like_two_steps(session):
    x = v1.placeholder(tf.float32, X.shape)
    options = {"updates_collections": None, "decay": 0.5, "scope": "bn"}
    outputs = [contrib(x, **options), contrib(2 * x, reuse=True, **options)]
    for _ in range(5):
        session.run(v1.global_variables_initializer())
        session.run(outputs, {x: X})
        got = state_of(session)["bn/moving_mean"]
        np.testing.assert_allclose(got, 1.25 * X.mean(0), rtol=1e-5)


def test_an_application_inside_a_loop_updates_in_each_round(session):
    x = v1.placeholder(tf.float32, X.shape)
    contrib(x, scope="bn", updates_collections=None, decay=0.5)

    def body(i, total):
        y = contrib(x, scope="bn", reuse=True, updates_collections=None, decay=0.5)
        return i + 1, total + tf.reduce_sum(y)

    # rounds that run in parallel, ten by default, may read before the one ahead has written
    total = v1.while_loop(lambda i, _: i < 3, body, [0, 0.0], parallel_iterations=1)
    session.run(v1.global_variables_initializer())
    session.run(total, {x: X})
    got = state_of(session)["bn/moving_mean"]
    np.testing.assert_allclose(got, (1 - 0.5**3) * X.mean(0), rtol=1e-5)


def test_the_original_moves_its_state_with_gradients_in_place_too(session):
    x = v1.placeholder(tf.float32, X.shape)
    y = tf1_originals.batch_norm(x, updates_collections=None, fused=False)
    session.run(v1.global_variables_initializer())
    assert moved(session, tf.gradients(tf.square(y), x), {x: X})["moving_mean"]
