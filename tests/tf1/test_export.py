"""Inference graphs leave the session: frozen, and as a SavedModel, without training ops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from batchnorm import tf1
from tf1_frozen import outputs_elsewhere

v1 = tf.compat.v1
RNG = np.random.default_rng(6)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")
layers, contrib = tf1.layers.batch_normalization, tf1.contrib.layers.batch_norm
CASES = {
    "layers": (layers, "training", {}),
    "layers, TensorFlow's ops": (layers, "training", {"fused": False}),
    "layers, renorm": (layers, "training", {"renorm": True}),
    "layers, ghost batches": (layers, "training", {"virtual_batch_size": 3}),
    "contrib, ReLU": (contrib, "is_training", {"activation_fn": tf.nn.relu}),
    "contrib, in place": (contrib, "is_training", {"updates_collections": None}),
    "contrib, zero-debias": (contrib, "is_training", {"zero_debias_moving_mean": True}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def checkpoint(case, tmp_path):
    """The prefix of a checkpoint that a training graph of this case has left."""
    function, flag, options = case
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3, 2, 4))
        y = function(x, **{flag: True}, **options)
        session.run(v1.global_variables_initializer())
        session.run([y, v1.get_collection(v1.GraphKeys.UPDATE_OPS)], {x: X})
        return v1.train.Saver().save(session, str(tmp_path / "model"))


@pytest.fixture
def inference(case, checkpoint):
    """(session, x, y) of the inference graph, with the checkpoint's variables."""
    function, flag, options = case
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3, 2, 4), name="x")
        y = tf.identity(function(x, **{flag: False}, **options), name="y")
        assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
        assert not [one for one in graph.get_operations() if "MovingAvg" in one.name]
        v1.train.Saver().restore(session, checkpoint)
        yield session, x, y


def kinds(nodes):
    return {node.op for node in nodes}


TRAINING = ("Assign", "Mean", "Sum", "Moments", "Forward", "Backward", "Moving")


@each_case
def test_a_frozen_graph_computes_the_same_without_training_ops(inference):
    session, x, y = inference
    want = session.run(y, {x: X})
    frozen = v1.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), ["y"]
    )
    assert not [kind for kind in kinds(frozen.node) if any(word in kind for word in TRAINING)]
    with tf.Graph().as_default(), v1.Session() as other:
        (got,) = tf.import_graph_def(frozen, return_elements=["y:0"])
        # TensorFlow folds what is constant now, and rounds once more or less
        np.testing.assert_allclose(other.run(got, {"import/x:0": X}), want, rtol=1e-6, atol=1e-6)


class Deriving(tf1.layers.BatchNormalization):
    def _moments(self, inputs, reduction_axes, keep_dims):
        return super()._moments(inputs, reduction_axes, keep_dims=keep_dims)


def test_a_frozen_graph_of_each_surface_runs_where_batchnorm_is_not(tmp_path):
    subclass = {
        "a subclass": (lambda x, training: Deriving()(x, training=training), "training", {})
    }
    np.save(tmp_path / "x.npy", X)
    want = {}
    for name, (function, flag, options) in (CASES | subclass).items():
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, (None, 3, 2, 4), name="x")
            y = tf.identity(function(x, **{flag: False}, **options), name="y")
            session.run(v1.global_variables_initializer())
            for one in v1.global_variables():
                value = RNG.uniform(0.5, 2.0, one.shape.as_list())
                session.run(one.initializer, {one.initializer.inputs[1]: value})
            frozen = v1.graph_util.convert_variables_to_constants(
                session, session.graph.as_graph_def(), ["y"]
            )
            (tmp_path / f"{name}.pb").write_bytes(frozen.SerializeToString())
            want[name] = session.run(y, {x: X})
    got = outputs_elsewhere(tmp_path)
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", [CASES["layers, TensorFlow's ops"]], ids=["fused=False"])
def test_a_graph_without_fused_kernels_needs_no_library_of_ours(inference):
    session, _, _ = inference
    nodes = session.graph.as_graph_def().node
    assert not [kind for kind in kinds(nodes) if kind.startswith("Batchnorm")]


@each_case
def test_a_saved_model_computes_the_same_without_training_ops(inference, tmp_path):
    session, x, y = inference
    want = session.run(y, {x: X})
    path = str(tmp_path / "exported")
    builder = v1.saved_model.Builder(path)
    signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
    builder.add_meta_graph_and_variables(
        session, [tf.saved_model.SERVING], {"serving_default": signature}
    )
    builder.save()
    with tf.Graph().as_default() as graph, v1.Session() as other:
        v1.saved_model.load(other, [tf.saved_model.SERVING], path)
        names = [one.name for one in graph.get_operations() if one.type != "AssignVariableOp"]
        assert not [name for name in names if "MovingAvg" in name]
        np.testing.assert_array_equal(other.run("y:0", {"x:0": X}), want)
