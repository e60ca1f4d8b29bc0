"""The V1 Keras layer: what its original did differently from V2, alive on Keras 3."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchnorm import tf1
from batchnorm.keras import BatchNormalizationBase
from recordings import golden_arrays, golden_cases, golden_state
from tf1_frozen import outputs_elsewhere

pytestmark = pytest.mark.keras
v1 = tf.compat.v1
values = keras.ops.convert_to_numpy
RNG = np.random.default_rng(4)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")

only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow alone has graphs"
)
CASES = [case for case in golden_cases("keras_v1") if case["defect"] is None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_training_steps_of_the_original_replay(case):
    recorded = golden_arrays(case)
    options = dict(case["kw"])
    if "adj_scale" in recorded:
        options["adjustment"] = lambda _: (recorded["adj_scale"], recorded["adj_bias"])
    layer = tf1.keras.layers.BatchNormalization(dtype=case["dtype"], **options)
    layer.build(tuple(case["shape"]))
    for name in ("gamma", "beta"):
        if name in recorded:
            getattr(layer, name).assign(np.reshape(recorded[name], getattr(layer, name).shape))
    for name, value in golden_state(case, 0).items():
        getattr(layer, name).assign(value)
    call = {} if "mask" not in recorded else {"mask": recorded["mask"]}
    for index in range(case["steps"]):
        y = layer(recorded["x"][index], training=bool(case["training"]), **call)
        np.testing.assert_allclose(values(y), recorded["y"][index], rtol=5e-5, atol=5e-5)
        for name, value in golden_state(case, index + 1).items():
            np.testing.assert_allclose(
                values(getattr(layer, name)), value, rtol=5e-5, atol=5e-5, err_msg=name
            )


def test_it_is_a_batch_normalization_to_keras():
    assert issubclass(tf1.keras.layers.BatchNormalization, keras.layers.BatchNormalization)
    assert issubclass(tf1.keras.layers.BatchNormalization, BatchNormalizationBase)


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"zero_debias": True}], ids=str)
def test_a_frozen_layer_normalizes_with_the_batch_and_freezes_all_state(options):
    layer = tf1.keras.layers.BatchNormalization(trainable=False, **options)
    layer.build(X.shape)
    before = [values(one) for one in layer.variables]
    y = values(layer(X, training=True))
    if not options.get("renorm"):
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    assert not np.allclose(y, values(layer(X, training=False)))
    assert all(map(np.array_equal, before, map(values, layer.variables)))
    assert layer.trainable_weights == []


@pytest.mark.parametrize(
    ("shape", "options", "unbiased"),
    [
        ((6, 3, 2, 4), {}, True),
        ((6, 3, 2, 4), {"axis": 1}, True),
        ((6, 3, 2, 4), {"axis": [3]}, True),
        ((6, 3, 2, 4), {"axis": 2}, False),
        ((6, 3, 2, 4), {"fused": False}, False),
        ((6, 3, 2, 4), {"fused": True}, True),
        ((6, 3, 2, 4), {"renorm": True}, False),
        ((6, 3, 2, 4), {"dtype": "float64"}, False),
        ((6, 3, 2, 4), {"unbiased_moving_variance": False}, False),
        ((6, 4), {"unbiased_moving_variance": True}, True),
        ((6, 4), {}, False),
        ((4, 3, 2, 1, 5), {}, True),
    ],
    ids=str,
)
def test_the_moving_variance_is_what_the_original_stored(shape, options, unbiased):
    if options.get("dtype") == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    x = RNG.normal(1.0, 2.0, shape)
    layer = tf1.keras.layers.BatchNormalization(momentum=0.0, **options)
    layer(x, training=True)
    axis = options.get("axis", -1)
    axis = (axis[0] if isinstance(axis, list) else axis) % len(shape)
    rest = tuple(i for i in range(len(shape)) if i != axis)
    want = x.var(rest, ddof=1 if unbiased else 0)
    np.testing.assert_allclose(values(layer.moving_variance), want, rtol=1e-4)


def test_fused_is_only_a_wish_and_is_saved(monkeypatch):
    from batchnorm.keras import base

    monkeypatch.setattr(base, "why_not", lambda subject: "There is none here.")
    layer = tf1.keras.layers.BatchNormalization(fused=True)
    assert layer.get_config()["fused"] is True


def test_a_saved_model_loads_as_v1(tmp_path):
    layer = tf1.keras.layers.BatchNormalization(renorm=True, trainable=False)
    model = keras.Sequential([keras.layers.Input(X.shape[1:]), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert type(loaded) is tf1.keras.layers.BatchNormalization
    assert loaded.get_config() == layer.get_config()
    name = keras.saving.get_registered_name(type(layer))
    assert name == "batchnorm>BatchNormalizationV1"


@only_tensorflow
def test_a_layer_in_a_graph_updates_only_when_its_updates_are_run():
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3, 2, 4))
        layer = tf1.keras.layers.BatchNormalization(momentum=0.0, name="bn")
        y = layer(x, training=True)
        assert len(layer.updates) == 2
        assert layer.get_updates_for(x) == layer.updates
        assert layer.get_updates_for(None) == []
        session.run(v1.global_variables_initializer())
        session.run(y, {x: X})
        assert not session.run(layer.moving_mean.value).any()
        session.run(layer.updates, {x: X})
        got = session.run(layer.moving_mean.value)
        assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == []
    np.testing.assert_allclose(got, X.mean((0, 1, 2)), rtol=1e-5)


@only_tensorflow
def test_two_calls_in_one_graph_step_update_one_after_the_other():
    other = 2 * X + 1
    with tf.Graph().as_default(), v1.Session() as session:
        x, z = (v1.placeholder(tf.float32, X.shape) for _ in range(2))
        layer = tf1.keras.layers.BatchNormalization(momentum=0.5)
        layer(x, training=True)
        layer(z, training=True)
        session.run(v1.global_variables_initializer())
        session.run(layer.updates, {x: X, z: other})
        got = session.run(layer.moving_mean.value)
    mean = X.mean((0, 1, 2))
    np.testing.assert_allclose(got, 0.25 * mean + 0.5 * (2 * mean + 1), rtol=1e-5)


@only_tensorflow
@pytest.mark.parametrize("trainable", [True, False])
def test_a_frozen_layer_in_a_graph_is_in_no_collection_of_trainable_variables(trainable):
    """D30: the original's was."""
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, X.shape)
        tf1.keras.layers.BatchNormalization(trainable=trainable)(x, training=True)
        assert len(v1.trainable_variables()) == (2 if trainable else 0)


@only_tensorflow
def test_a_frozen_graph_runs_where_batchnorm_is_not(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 3, 2, 4), name="x")
        layer = tf1.keras.layers.BatchNormalization(moving_mean_initializer="ones")
        y = tf.identity(layer(x, training=False), name="y")
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(
            session, session.graph.as_graph_def(), ["y"]
        )
        (tmp_path / "keras.pb").write_bytes(frozen.SerializeToString())
        want = session.run(y, {x: X})
    np.testing.assert_allclose(outputs_elsewhere(tmp_path)["keras"], want, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it needs TensorFlow")
def test_the_layer_imports_no_tensorflow_where_keras_does_not():
    code = (
        "import sys, batchnorm.tf1.keras as tf1\n"
        "import numpy as np\n"
        "tf1.layers.BatchNormalization()(np.ones((2, 3), 'float32'), training=True)\n"
        "print({'batchnorm.tf1.layers', 'batchnorm.backends.tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@only_tensorflow
def test_in_a_wrapped_function_the_updates_are_there_to_be_run():
    """They were lost: nothing orders side effects there, and `updates` was empty."""
    layer = tf1.keras.layers.BatchNormalization(momentum=0.5)

    def step(x):
        y = layer(x, training=True)
        layer(2 * x, training=True)
        with tf.control_dependencies(layer.updates):
            return tf.identity(y)

    wrapped = v1.wrap_function(step, [tf.TensorSpec(X.shape, tf.float32)])
    assert len(layer.updates) == 4
    assert not values(layer.moving_mean).any()
    wrapped(tf.constant(X))
    np.testing.assert_allclose(values(layer.moving_mean), 1.25 * X.mean((0, 1, 2)), rtol=1e-5)


@only_tensorflow
def test_a_layer_in_a_function_or_a_model_updates_by_itself():
    layer = tf1.keras.layers.BatchNormalization(momentum=0.0)
    inputs = keras.layers.Input(X.shape[1:])
    model = keras.Model(inputs, layer(inputs, training=True))
    tf.function(lambda x: model(x, training=True))(tf.constant(X))
    assert layer.updates == []
    np.testing.assert_allclose(values(layer.moving_mean), X.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("method", ["_moments", "_fused_batch_norm"])
def test_an_override_that_nothing_would_call_is_refused(method):
    with pytest.raises(TypeError) as caught:
        type("Mine", (tf1.keras.layers.BatchNormalization,), {method: lambda self: None})
    assert str(caught.value) == (
        f"Mine: {method} must not be overridden; got an override, which nothing here calls. "
        "Override call or build, or derive from batchnorm.tf1.layers.BatchNormalization, which "
        "calls _moments."
    )
