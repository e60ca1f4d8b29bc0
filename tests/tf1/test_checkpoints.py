"""Checkpoints go from the originals to ours and back, and TensorFlow 1.x renorm layers load."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
RNG = np.random.default_rng(8)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")
layers = (tf1_originals.batch_normalization, tf1.layers.batch_normalization)
contrib = (tf1_originals.batch_norm, tf1.contrib.layers.batch_norm)

CASES = {
    "layers": (layers, "training", {}),
    "layers, renorm": (layers, "training", {"renorm": True}),
    "layers, ghost batches": (layers, "training", {"virtual_batch_size": 2}),
    "layers, two axes": (layers, "training", {"axis": [1, 3]}),
    "contrib": (contrib, "is_training", {"scale": True}),
    "contrib, in place": (contrib, "is_training", {"updates_collections": None}),
    "contrib, renorm": (contrib, "is_training", {"renorm": True}),
    # with a decay of 0.999 the original rounds its divisor, 1 - decay^step, by 1e-5 (D35)
    "contrib, zero-debias": (
        contrib,
        "is_training",
        {"zero_debias_moving_mean": True, "decay": 0.9},
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(function, flag, options, **scope):
    """(graph, x, y in training, updates, y in inference)."""
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, X.shape)
        name = {"training": "name", "is_training": "scope"}[flag]
        y = function(x, **{flag: True, name: "bn"}, **options)
        inferred = function(x, **{flag: False, name: "bn"}, **options, reuse=True)
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS)
    return graph, x, y, updates, inferred


def trained_and_saved(built, path):
    graph, x, y, updates, inferred = built
    with v1.Session(graph=graph) as session, graph.as_default():
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run([y, updates], {x: X})
        v1.train.Saver().save(session, path)
        return session.run(inferred, {x: X})


def loaded(built, path):
    graph, x, y, updates, inferred = built
    with v1.Session(graph=graph) as session, graph.as_default():
        v1.train.Saver().restore(session, path)
        before = session.run(inferred, {x: X})
        session.run([y, updates], {x: X})
        return before, session.run(inferred, {x: X})


@each_case
@pytest.mark.parametrize("back", [False, True], ids=["from the original", "to the original"])
def test_a_saver_carries_training_between_the_original_and_ours(case, back, tmp_path):
    functions, *how = case
    writer, reader = reversed(functions) if back else functions
    path = str(tmp_path / "model")
    saved = trained_and_saved(built(writer, *how), path)
    restored, continued = loaded(built(reader, *how), path)
    np.testing.assert_allclose(restored, saved, rtol=1e-5, atol=1e-5)
    _, expected = loaded(built(writer, *how), path)
    np.testing.assert_allclose(continued, expected, rtol=1e-5, atol=1e-5)


@each_case
def test_a_checkpoint_holds_the_variables_of_the_original(case, tmp_path):
    functions, *how = case
    stored = []
    for function in functions:
        path = str(tmp_path / function.__module__)
        trained_and_saved(built(function, *how), path)
        stored.append(tf.train.load_checkpoint(path).get_variable_to_shape_map())
    assert stored[0] == stored[1]


def saved_by_1x(path, weights=(0.75, 0.5)):
    """What TensorFlow 1.x saved of a renorm layer, with values that are easy to see."""
    values = {
        "gamma": [1.0, 2.0],
        "beta": [0.5, -0.5],
        "moving_mean": [3.0, 4.0],
        "moving_variance": [5.0, 6.0],
        "renorm_mean": [1.5, 3.0],
        "renorm_mean_weight": weights[0],
        "renorm_stddev": [1.0, 2.0],
        "renorm_stddev_weight": weights[1],
    }
    with tf.Graph().as_default(), v1.Session() as session:
        made = [
            v1.get_variable(f"net/bn/{k}", initializer=tf.constant(v)) for k, v in values.items()
        ]
        session.run(v1.global_variables_initializer())
        v1.train.Saver(made).save(session, path)


def restored(path, **options):
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 2))
        with v1.variable_scope("net"):
            tf1.layers.batch_normalization(x, renorm=True, name="bn", training=True)
        session.run(v1.global_variables_initializer())
        tf1.restore(session, path, **options)
        values = session.run({one.op.name.split("/")[-1]: one for one in v1.global_variables()})
    return values


def test_a_renorm_layer_of_1x_is_restored_without_its_weights(tmp_path):
    saved_by_1x(str(tmp_path / "model"))
    got = restored(str(tmp_path / "model"))
    expected = {
        "gamma": [1.0, 2.0],
        "beta": [0.5, -0.5],
        "moving_mean": [3.0, 4.0],
        "moving_variance": [5.0, 6.0],
        "moving_stddev": np.sqrt([5.001, 6.001]),
        "renorm_mean": [2.0, 4.0],
        "renorm_stddev": [2.0, 4.0],
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_the_deviation_of_a_1x_layer_is_taken_with_its_epsilon(tmp_path):
    saved_by_1x(str(tmp_path / "model"))
    got = restored(str(tmp_path / "model"), epsilon=0.5)
    np.testing.assert_allclose(got["moving_stddev"], np.sqrt([5.5, 6.5]), rtol=1e-6)


def test_a_1x_layer_that_never_trained_starts_as_a_new_one(tmp_path):
    saved_by_1x(str(tmp_path / "model"), weights=(0.0, 0.0))
    got = restored(str(tmp_path / "model"))
    np.testing.assert_array_equal(got["renorm_mean"], [0.0, 0.0])
    np.testing.assert_array_equal(got["renorm_stddev"], [1.0, 1.0])


def test_restore_reads_what_a_saver_wrote(tmp_path):
    path = str(tmp_path / "model")
    graph, *_ = parts = built(tf1.layers.batch_normalization, "training", {"renorm": True})
    saved = trained_and_saved(parts, path)
    with v1.Session(graph=graph) as session:
        tf1.restore(session, path)
        got = session.run(parts[-1], {parts[1]: X})
    np.testing.assert_array_equal(got, saved)


@pytest.mark.parametrize(
    ("shape", "got"), [((6, 5), "(4,)"), ((6, 4), "none")], ids=["another shape", "not there"]
)
def test_a_variable_that_the_checkpoint_does_not_have_is_named(shape, got, tmp_path):
    path = str(tmp_path / "model")
    trained_and_saved(built(tf1.layers.batch_normalization, "training", {}), path)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, shape)
        tf1.layers.batch_normalization(x, name="bn" if got == "(4,)" else "other")
        with pytest.raises(ValueError) as caught:  # noqa: PT011, its words are below
            tf1.restore(session, path)
    name = "bn/gamma" if got == "(4,)" else "other/gamma"
    assert str(caught.value) == (
        f"restore: the checkpoint {path!r} must hold {name} of shape {shape[1:]}; got {got}. "
        "Restore only the variables that it has."
    )


def test_partitioned_parameters_are_restored(tmp_path):
    path = str(tmp_path / "model")
    results = []
    for step in ("save", "restore"):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, X.shape)
            partitioner = v1.fixed_size_partitioner(2)
            with v1.variable_scope("net", partitioner=partitioner):
                y = tf1.layers.batch_normalization(x, name="bn")
            session.run(v1.global_variables_initializer())
            if step == "save":
                for one in v1.trainable_variables():
                    session.run(one.assign(tf.random.uniform(one.shape)))
                v1.train.Saver().save(session, path)
            else:
                tf1.restore(session, path)
            results.append(session.run(y, {x: X}))
    np.testing.assert_array_equal(*results)
