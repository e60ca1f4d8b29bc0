"""Folding: the same outputs without batch normalization, or a refusal that says why."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchnorm
from batchnorm.keras import BatchNormalization
from batchnorm.tools.folding import largest_difference
from tool_models import KINDS, dense, left, reasons, rows, shake, weights_of

pytestmark = pytest.mark.keras

layers = keras.layers
KERAS = layers.BatchNormalization
SIZES = {1: (9,), 2: (9, 8), 3: (6, 5, 7)}
KINDS_OF = {
    "conv": {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D},
    "transposed": {1: layers.Conv1DTranspose, 2: layers.Conv2DTranspose, 3: layers.Conv3DTranspose},
    "depthwise": {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D},
    "separable": {1: layers.SeparableConv1D, 2: layers.SeparableConv2D},
}
# TensorFlow on the CPU computes channels-last only, and no groups.
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


@st.composite
def linear_layers(draw, rank: int, axis: int):
    """A kind of linear layer, and its options."""
    kind = draw(st.sampled_from([name for name, ranks in KINDS_OF.items() if rank in ranks]))
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "padding": draw(st.sampled_from(["valid", "same"])),
        "use_bias": draw(st.booleans()),
        "data_format": "channels_first" if axis == 1 else "channels_last",
    }
    if draw(st.booleans()):
        options["strides"] = 2
    elif kind in ("conv", "depthwise"):
        options["dilation_rate"] = draw(st.integers(1, 2))
    if kind in ("depthwise", "separable"):
        options["depth_multiplier"] = draw(st.integers(1, 2))
    if kind != "depthwise":
        options["filters"] = draw(st.sampled_from([2, 6]))
    if kind == "conv" and not ON_TENSORFLOW:
        options["groups"] = draw(st.sampled_from([1, 2]))
    return KINDS_OF[kind][rank], options


@st.composite
def zoo(draw):
    """How to build a model with normalizations before and behind a linear layer, some in a row."""
    rank = draw(st.sampled_from([1, 2, 3]))
    axis = -1 if ON_TENSORFLOW else draw(st.sampled_from([-1, 1]))
    flags = st.lists(st.tuples(st.sampled_from(list(KINDS)), st.booleans()), max_size=2)
    before, behind = draw(flags), draw(flags)
    return rank, axis, before, draw(linear_layers(rank, axis)), behind, draw(st.integers(0, 99))


def build_zoo(rank, axis, before, linear, behind, seed) -> keras.Model:
    shape = (*SIZES[rank], 4) if axis == -1 else (4, *SIZES[rank])
    x = inputs = keras.Input(shape)
    for index, (kind, center) in enumerate(before):
        x = KINDS[kind](axis=axis, center=center, name=f"before{index}")(x)
    x = linear[0](name="linear", **linear[1])(x)
    for index, (kind, scale) in enumerate(behind):
        x = KINDS[kind](axis=axis, scale=scale, name=f"behind{index}")(x)
    return shake(keras.Model(inputs, layers.ReLU()(x)), seed)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(zoo())
def test_a_zoo_of_linear_layers_puts_out_the_same(made):
    model = build_zoo(*made)
    shape = model.input_shape[1:]
    x = np.random.default_rng(1).normal(0.5, 1, (3, *shape)).astype(np.float32)
    folded = batchnorm.fold(model, x)
    assert folded.folding.difference <= 1e-5
    remaining = left(folded)
    assert remaining == list(reasons(folded))
    assert all(name.startswith("before") for name in remaining)
    assert all("pads its input" in one or "transposed" in one for one in reasons(folded).values())


@pytest.mark.parametrize("kind", KINDS)
def test_dense_layers_take_both_sides(kind):
    model = shake(dense(kind))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert [name for name, _ in folded.folding.folded] == ["first", "second"]
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5


def test_a_given_model_is_left_bit_for_bit_and_what_changed_is_not_shared():
    model = shake(dense("ours"))
    before = weights_of(model)
    folded = batchnorm.fold(model)
    for layer in folded.layers:
        for variable in layer.variables:
            variable.assign(keras.ops.zeros_like(variable.value))
    assert weights_of(model) == before
    assert folded.folding.difference is None


class Told(layers.Layer):
    """State outside of its variables, and no configuration."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor + keras.ops.convert_to_tensor(self.table)


def test_layers_that_need_no_change_are_the_same_objects():
    """Lambdas, adapted layers and layers without a configuration failed, or lost their state."""
    x = rows(20, mean=1.0)
    adapted = layers.Normalization()
    adapted.adapt(x)
    told = Told(np.arange(5, dtype=np.float32))
    buckets = layers.Discretization(num_bins=3, output_mode="int")
    buckets.adapt(x)
    inputs = keras.Input((5,))
    y = layers.Lambda(lambda t: t * 3)(told(adapted(inputs)))
    y = BatchNormalization()(layers.Dense(4, activation=None, name="dense")(y))
    z = layers.Lambda(lambda t: keras.ops.cast(t, "float32"))(buckets(inputs))
    y = layers.Concatenate()([layers.LayerNormalization()(y), z])
    inner = keras.Sequential([keras.Input((9,)), layers.Dense(2)], name="inner")
    model = shake(keras.Model(inputs, inner(y)))
    folded = batchnorm.fold(model, x)
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5
    shared = [one for one in model.layers if any(one is other for other in folded.layers)]
    changed = [
        one.name
        for one in model.layers
        if one not in shared and not isinstance(one, layers.InputLayer)  # a model has its own
    ]
    assert set(changed) - {"dense"} <= {one.name for one in model.layers if isinstance(one, KERAS)}
    assert told in shared
    assert inner in shared


@pytest.mark.skipif(not ON_TENSORFLOW, reason="strings are TensorFlow's")
def test_a_lookup_keeps_its_vocabulary():
    words = keras.Input((3,), dtype="string")
    ids = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="multi_hot")(words)
    model = shake(keras.Model(words, BatchNormalization()(layers.Dense(4)(ids))))
    import tensorflow as tf

    folded = batchnorm.fold(model)
    data = tf.constant([["a", "b", "x"], ["c", "c", "a"]])
    np.testing.assert_allclose(folded(data), model(data, training=False), rtol=1e-5, atol=1e-6)


def test_options_that_only_learning_needs_do_not_matter():
    """Functions and classes of the user cannot be built from their names."""

    def mine(x):
        return keras.ops.maximum(x, 0.1 * x)

    class Total(keras.regularizers.Regularizer):
        def __call__(self, w):
            return keras.ops.sum(w)

        def get_config(self):
            return {}

    class Same(keras.constraints.Constraint):
        def __call__(self, w):
            return w

    linear = layers.Dense(
        4, activation=mine, kernel_regularizer=Total(), kernel_constraint=Same(), name="dense"
    )
    inputs = keras.Input((5,))
    model = shake(keras.Model(inputs, linear(BatchNormalization()(inputs))))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="through TensorFlow's SavedModel")
@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")
def test_a_folded_model_exports(tmp_path):
    import tensorflow as tf

    folded = batchnorm.fold(shake(dense("ours")))
    folded.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    x = rows(8, mean=1.0)
    loaded = tf.saved_model.load(str(tmp_path / "model"))  # it holds the variables
    np.testing.assert_allclose(loaded.serve(x), folded.predict_on_batch(x), rtol=1e-5)


def test_the_given_model_still_predicts_after_the_folded_one_did():
    """On JAX, `predict` gives away the arrays that it was called with."""
    model = keras.Sequential([keras.layers.Input((3,)), dense_block(), keras.layers.Dense(2)])
    x = np.ones((4, 3), np.float32)
    folded = batchnorm.fold(model)
    for one in (folded, model, folded, model):
        one.predict_on_batch(x)
    np.testing.assert_allclose(folded.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-5)


def dense_block() -> keras.Model:
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4), BatchNormalization()])


def test_an_activation_of_our_layer_moves_into_the_linear_one():
    x = inputs = keras.Input((5,))
    x = layers.Dense(4, name="dense")(x)
    model = shake(keras.Model(inputs, BatchNormalization(activation="relu")(x)))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert folded.get_layer("dense").activation is keras.activations.relu
    assert folded.folding.difference <= 1e-5


def test_dropout_in_between_does_not_matter():
    x = inputs = keras.Input((5,))
    x = layers.Dropout(0.5)(layers.Dense(4)(x))
    model = shake(keras.Model(inputs, KERAS(name="norm")(x)))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5


def test_normalizations_in_a_row_become_one_where_no_linear_layer_is():
    x = inputs = keras.Input((5,))
    x = KERAS(name="a")(x)
    x = BatchNormalization(name="b", center=False)(x)
    model = shake(keras.Model(inputs, layers.ReLU()(KERAS(name="c", scale=False)(x))))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert folded.folding.folded == (("b", "a"), ("c", "a"))
    assert left(folded) == ["a"]
    assert folded.folding.difference <= 1e-5


def test_models_inside_models_are_folded_too():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), KERAS(name="norm"), layers.ReLU()], name="inner"
    )
    inputs = keras.Input((5,))
    model = shake(keras.Model(inputs, inner(layers.Dense(4)(inputs))))
    folded = batchnorm.fold(model, rows(20, mean=1.0))
    assert left(folded) == []
    assert folded.folding.folded[0][0] == "inner/norm"
    assert folded.folding.difference <= 1e-5


def test_a_folded_model_is_saved_and_loaded(tmp_path):
    folded = batchnorm.fold(shake(dense("ours")))
    x = rows(8, mean=1.0)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(one(x, training=False)) for one in (loaded, folded))
    )


def norm(x, **options):
    return BatchNormalization(name="norm", **options)(x)


def relu(x):
    return layers.ReLU(name="relu")(x)


def test_no_rows_are_no_comparison():
    with pytest.raises(ValueError, match="at least one row") as raised:
        batchnorm.fold(dense("ours"), rows(0))
    assert str(raised.value) == "fold: data must hold at least one row; got none."


def test_outputs_of_which_one_is_nan_differ():
    """max(0.0, nan) is 0.0."""

    def times(factor):
        return lambda x: [x * factor]

    three = [rows(3)]
    assert np.isnan(largest_difference(times(1.0), times(np.nan), three))
    assert largest_difference(times(np.nan), times(np.nan), three) == 0
    assert largest_difference(times(1.0), times(2.0), three) == 1


def test_layers_inside_wrappers_are_refused():
    inputs = keras.Input((6, 5))
    outputs = layers.TimeDistributed(BatchNormalization(name="norm"), name="each")(inputs)
    assert reasons(batchnorm.fold(keras.Model(inputs, outputs))) == {
        "norm": "it is inside 'each' (TimeDistributed), which is no model"
    }


def test_a_model_without_a_graph_is_named():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional") as raised:
        batchnorm.fold(Own())
    assert str(raised.value) == (
        "fold: model must be functional or sequential with a known input shape, so that its graph "
        "is known; got Own."
    )


def test_what_is_no_keras_model_is_named():
    with pytest.raises(TypeError, match="Keras model") as raised:
        batchnorm.fold("model")
    assert str(raised.value) == (
        "fold: model must be a Keras model, a PyTorch module or an nnx module; got builtins.str. "
        "Import its framework and build the model first."
    )


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the large networks run on torch")
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2", "EfficientNetB0"])
def test_applications_lose_every_normalization_and_put_out_the_same(name):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    folded = batchnorm.fold(shake(model), np.random.default_rng(0).normal(0, 1, (4, 64, 64, 3)))
    assert folded.folding.refused == ()
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5
