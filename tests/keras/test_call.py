"""What a call takes and returns: every kind of `training`, every type of input, every compiler."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import reference
from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(13)
X = RNG.normal(2.0, 3.0, (6, 4, 3)).astype("float32")
INFERENCE = X / np.sqrt(1 + 1e-3)  # with initial statistics


def dtype(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def variables(layer):
    return {variable.name: np.array(array(variable)) for variable in layer.variables}


def expected(**options):
    state = {"moving_mean": np.zeros(3), "moving_variance": np.ones(3)}
    return reference.batch_norm(X, {}, state, training=True, **options)


# The training argument.

TRUE = [True, 1, np.bool_(True), np.int64(1), np.array(True)]
FALSE = [False, 0, np.bool_(False), np.int64(0), np.array(False), None]


@pytest.mark.parametrize("training", TRUE, ids=repr)
def test_every_kind_of_true_trains(training):
    layer = ours.BatchNormalization()
    y = layer(X, training=training)
    np.testing.assert_allclose(array(y), expected().y, atol=1e-5)
    assert int(array(layer.num_updates)) == 1


@pytest.mark.parametrize("training", FALSE, ids=repr)
def test_every_kind_of_false_is_inference(training):
    layer = ours.BatchNormalization()
    y = layer(X, training=training)
    np.testing.assert_allclose(array(y), INFERENCE, rtol=1e-5)
    assert int(array(layer.num_updates)) == 0


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kind", ["bool", "int32"])
def test_a_tensor_decides_about_training(value, kind):
    layer = ours.BatchNormalization()
    y = layer(X, training=keras.ops.convert_to_tensor(value, kind))
    np.testing.assert_allclose(array(y), expected().y if value else INFERENCE, atol=1e-5)
    assert int(array(layer.num_updates)) == int(value)


def traced(layer, engine, x, training, **options):
    """Calls the layer with `training` as a tensor that the compiler does not know."""
    x, training = engine.tensor(x), engine.tensor(training)
    if engine.name == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x, t: layer(x, training=t), **options)(x, training)
    if engine.name == "torch":
        return layer(x, training=training)
    import jax

    held = (
        [variable.value for variable in layer.variables if variable.trainable],
        [variable.value for variable in layer.variables if not variable.trainable],
    )
    function = jax.jit(lambda *held, x, t: layer.stateless_call(*held, x, training=t))
    y, new = function(*held, x=x, t=training)
    for variable, value in zip(layer.non_trainable_variables, new, strict=True):
        variable.assign(value)
    return y


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"renorm": True}, {"virtual_batch_size": 2}, {"zero_debias": "both"}],
    ids=["plain", "renorm", "ghost", "debiased"],
)
def test_a_traced_tensor_equals_the_bool(engine, value, options):
    one = ours.BatchNormalization(name="one", momentum=0.5, **options)
    other = ours.BatchNormalization(name="other", momentum=0.5, **options)
    for layer in (one, other):
        layer.build(X.shape)
    for x in (X, X[::-1].copy()):
        a, b = traced(one, engine, x, value), other(x, training=value)
        np.testing.assert_allclose(array(a), array(b), atol=1e-5)
    want = variables(other)
    for name, got in variables(one).items():
        np.testing.assert_allclose(got, want[name], atol=1e-6, err_msg=name)


def test_a_traced_false_changes_no_bit(engine):
    layer = ours.BatchNormalization(renorm=True, zero_debias="both")
    layer(X, training=True)
    before = variables(layer)
    traced(layer, engine, X + 1, False)
    after = variables(layer)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_any_number_of_rows_is_fine_for_ghost_batches_where_a_traced_training_is_false(engine):
    layer = ours.BatchNormalization(virtual_batch_size=4)
    layer.build(X.shape)
    y = traced(layer, engine, X[:5], False)
    np.testing.assert_allclose(array(y), INFERENCE[:5], rtol=1e-5)


def test_ghost_batches_that_do_not_divide_are_refused_where_a_traced_training_is_true(engine):
    layer = ours.BatchNormalization(virtual_batch_size=4, name="bn")
    layer.build(X.shape)
    with pytest.raises(Exception, match="virtual_batch_size must divide the batch in training"):
        array(traced(layer, engine, X[:5], True))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_hands_training_down(training):
    layer = ours.BatchNormalization()
    model = keras.Sequential([keras.layers.Input((4, 3)), layer])
    y = model(X, training=training)
    np.testing.assert_allclose(array(y), expected().y if training else INFERENCE, atol=1e-5)


# The trainable attribute, with the meaning of TensorFlow 2.


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_layer_is_in_inference(training):
    layer = ours.BatchNormalization(trainable=False, renorm=True)
    layer.build(X.shape)
    before = variables(layer)
    y = layer(X, training=training)
    np.testing.assert_allclose(array(y), INFERENCE, rtol=1e-5)
    after = variables(layer)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_trainable_may_change_at_any_time():
    layer = ours.BatchNormalization()
    counts = []
    for trainable in (True, False, True):
        layer.trainable = trainable
        layer(X, training=True)
        counts.append(int(array(layer.num_updates)))
    assert counts == [1, 1, 2]


def test_a_frozen_layer_can_use_the_batch_as_in_tensorflow_1():
    layer = ours.BatchNormalizationBase(trainable=False, statistics="batch")
    y = layer(X, training=True)
    np.testing.assert_allclose(array(y), expected().y, atol=1e-5)
    assert int(array(layer.num_updates)) == 0


# Types.


@pytest.mark.parametrize(
    ("policy", "output", "statistics"),
    [
        ("float16", "float16", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_a_policy_decides_the_types(policy, output, statistics, wide):
    with wide(policy):
        layer = ours.BatchNormalization(renorm=True, dtype=policy)
        y = layer(keras.ops.convert_to_tensor(X), training=True)
        assert dtype(y) == output
        assert {dtype(one) for one in layer.weights} == {statistics}


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_16_bit_statistics_are_those_of_the_rounded_input(policy):
    layer = ours.BatchNormalization(momentum=0.0, dtype=policy)
    y = layer(X, training=True)
    rounded = array(keras.ops.cast(keras.ops.cast(X, layer.compute_dtype), "float32"))
    np.testing.assert_allclose(array(layer.moving_mean), rounded.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(array(layer.moving_variance), rounded.var((0, 1)), rtol=1e-5)
    assert np.abs(array(keras.ops.cast(y, "float32")) - expected().y).max() < 2e-2


def test_float64_is_exact(wide):
    with wide():
        layer = ours.BatchNormalization(dtype="float64")
        y = layer(X.astype("float64"), training=True)
        np.testing.assert_allclose(array(y), expected().y, atol=1e-12)
        want = expected().state["moving_variance"]
        np.testing.assert_allclose(array(layer.moving_variance), want, rtol=1e-12)


def test_the_global_policy_counts():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = ours.BatchNormalization()
    assert dtype(layer(X)) == "bfloat16"
    assert dtype(layer.gamma) == "float32"


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool"])
def test_other_inputs_are_cast_first(kind):
    x = np.arange(24).reshape(8, 3) % 2 if kind == "bool" else np.arange(24).reshape(8, 3)
    layer = ours.BatchNormalization(momentum=0.0)
    y = layer(x.astype(kind), training=True)
    assert dtype(y) == "float32"
    np.testing.assert_allclose(array(layer.moving_mean), x.astype(kind).mean(0), rtol=1e-6)


def test_a_float64_array_in_a_default_layer_gives_float32():
    assert dtype(ours.BatchNormalization()(X.astype("float64"), training=True)) == "float32"


def test_a_mixed_precision_model_trains():
    layer = ours.BatchNormalization(dtype="mixed_bfloat16")
    model = keras.Sequential([keras.layers.Input((4, 3)), layer, keras.layers.Flatten(),
                              keras.layers.Dense(1)])  # fmt: skip
    model.compile("sgd", "mse")
    model.fit(X, X[:, 0, :1], verbose=0)
    assert np.isfinite(array(layer.moving_variance)).all()
    assert int(array(layer.num_updates)) == 1


# Activations.


@pytest.mark.parametrize("name", ["relu", "tanh", "linear", None])
def test_an_activation_is_applied_last(name):
    layer = ours.BatchNormalization(activation=name)
    y = layer(X, training=True)
    want = array(keras.activations.get(name)(expected().y.astype("float32")))
    np.testing.assert_allclose(array(y), want, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"fused": False}], ids=str)
def test_relu_has_the_gradients_of_relu(options, step):
    dy = RNG.normal(size=X.shape)
    layer = ours.BatchNormalization(activation="relu", **options)
    got = step(layer, X, dy, training=True)
    plain = ours.BatchNormalization(**options)
    positive = array(plain(X, training=True)) > 0
    want = step(ours.BatchNormalization(**options), X, dy * positive, training=True)
    for name in ("dx", "gamma", "beta"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-4, err_msg=name)


# The same layer in other places.


@pytest.mark.parametrize("way", ["call", "fit"])
def test_a_layer_called_twice_in_a_model_updates_twice_and_in_order(way):
    layer = ours.BatchNormalization(momentum=0.5)
    a, b = keras.Input((4, 3)), keras.Input((4, 3))
    model = keras.Model([a, b], layer(a) + layer(b))
    if way == "call":
        model([X, 2 * X + 1], training=True)
    else:
        model.compile("sgd", "mse")
        model.fit([X, 2 * X + 1], X, batch_size=6, verbose=0)
    means = X.mean((0, 1)), (2 * X + 1).mean((0, 1))
    want = 0.5 * (0.5 * means[0]) + 0.5 * means[1]
    np.testing.assert_allclose(array(layer.moving_mean), want, rtol=1e-5)
    assert int(array(layer.num_updates)) == 2


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}, {"renorm": True}])
def test_the_synchronized_layer_on_one_replica_equals_the_plain_one(options, step):
    dy = RNG.normal(size=X.shape)
    one = ours.SyncBatchNormalization(name="one", **options)
    other = ours.BatchNormalization(name="other", **options)
    a, b = step(one, X, dy, training=True), step(other, X, dy, training=True)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    after = variables(one)
    assert all(np.array_equal(after[name], value) for name, value in variables(other).items())


def test_the_output_shape_is_the_input_shape():
    layer = ours.BatchNormalization(axis=[1, 2])
    assert layer.compute_output_shape((None, 4, 3)) == (None, 4, 3)
    assert layer(keras.Input((4, 3))).shape == (None, 4, 3)


def test_an_activity_regularizer_counts():
    layer = ours.BatchNormalization(activity_regularizer=keras.regularizers.L2(0.5))
    y = array(layer(X, training=True))
    (loss,) = layer.losses
    assert float(array(loss)) == pytest.approx(0.5 * np.square(y).sum() / 6, rel=1e-5)


# Ghost batches in chunks, cumulative averages, renorm against the moving statistics.


@pytest.mark.parametrize("rows", [4, 5])
def test_chunks_are_remembered_one_after_the_other(state_of, rows):
    options = {"virtual_batch_size": 3, "ghost_order": "chunks", "momentum": None}
    options |= {"renorm": True, "renorm_momentum": None}
    layer = ours.BatchNormalization(**options)
    layer = ours.BatchNormalization.from_config(layer.get_config())
    layer.build(X.shape)
    for _ in range(2):
        state = state_of(layer)
        assert "renorm_mean" not in state
        y = layer(X[:rows], training=True)
        wanted = reference.batch_norm(X[:rows], {}, state, training=True, **options)
        np.testing.assert_allclose(array(y), wanted.y, atol=1e-5)
        for name, value in state_of(layer).items():
            np.testing.assert_allclose(value, wanted.state[name], rtol=1e-5)
