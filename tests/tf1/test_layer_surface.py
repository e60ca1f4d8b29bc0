"""What else a layer of `tf.layers` was: names, variables, updates, losses, configuration."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf1_originals
from batchnorm import tf1

v1 = tf.compat.v1
Layer = tf1.layers.BatchNormalization
RNG = np.random.default_rng(9)
X = RNG.normal(2.0, 3.0, (6, 3, 2, 4)).astype("float32")


def placeholder(*shape, dtype=tf.float32):
    return v1.placeholder(dtype, shape)


def original(**options):
    return tf1_originals.layers().BatchNormalization(**options)


OPTIONS = [
    {},
    {"name": "bn", "axis": 1},
    {"axis": -2},
    {"axis": [1, 3]},
    {"fused": False},
    {"fused": True, "renorm": True},
    {"virtual_batch_size": 2, "axis": 1},
    {"dtype": tf.float64},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attributes_are_what_the_original_showed_before_and_after_the_first_call(options):
    seen = []
    for make in (Layer, original):
        with tf.Graph().as_default(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer, other = make(**options), make()
            shown = [layer.name, other.name, layer.axis, layer.fused, layer.built, layer.stateful]
            x = placeholder(*X.shape)
            layer(x, training=True)
            spec = layer.input_spec
            shown += [layer.axis, layer.fused, layer.built, layer.scope_name, spec.ndim, spec.axes]
            shown += [layer.count_params(), layer.dtype, layer.compute_output_shape(X.shape)]
            shown += [[one.name for one in names] for names in (layer.weights, layer.updates)]
            shown += [len(layer.get_updates_for(x)), layer.losses, layer.trainable]
            seen.append(shown)
    assert seen[0] == seen[1]


def test_names_of_classes_are_unique_in_a_graph():
    for make in (Layer, original):
        with tf.Graph().as_default():
            assert [make().name for _ in range(2)] == [
                "batch_normalization_1",
                "batch_normalization_2",
            ]


def test_apply_is_a_call(session):
    layer = Layer()
    layer.apply(placeholder(6, 4), training=True)
    assert len(layer.updates) == 2


def test_weights_are_read_and_written_in_the_default_session(session):
    layer = Layer()
    layer(placeholder(6, 4))
    session.run(v1.global_variables_initializer())
    with session.as_default():
        given = [np.full(4, value, "float32") for value in (1.0, 2.0, 3.0, 4.0)]
        operations = len(session.graph.get_operations())
        layer.set_weights(given)
        np.testing.assert_array_equal(layer.get_weights(), given)
        assert len(session.graph.get_operations()) == operations
    np.testing.assert_array_equal(session.run(layer.moving_mean), given[2])


def test_weights_without_a_session_are_refused(graph):
    layer = Layer(name="bn")
    layer(placeholder(6, 4))
    for method, call in (
        ("get_weights", layer.get_weights),
        ("set_weights", lambda: layer.set_weights([np.ones(4)] * 4)),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            call()
        assert str(caught.value) == (
            f"BatchNormalization 'bn': {method} must be called in a session; got no default "
            "session. Write `with session.as_default():` around it."
        )


def test_weights_of_other_shapes_are_refused(session):
    layer = Layer(name="bn", center=False)
    layer(placeholder(6, 4))
    with session.as_default(), pytest.raises(ValueError, match="must") as caught:
        layer.set_weights([np.ones(4), np.ones(3)])
    assert str(caught.value) == (
        "BatchNormalization 'bn': weights must have the shapes [(4,), (4,), (4,)]; got [(4,), "
        "(3,)]. Give the values in the order of layer.weights."
    )


def test_variables_are_not_counted_before_there_are_any(graph):
    with pytest.raises(ValueError, match="must") as caught:
        Layer(name="bn").count_params()
    assert str(caught.value) == (
        "BatchNormalization 'bn': count_params must come after build; got no variables. Call the "
        "layer, or build, before."
    )


def test_call_before_build_is_refused(graph):
    with pytest.raises(ValueError, match="must") as caught:
        Layer(name="bn").call(placeholder(6, 4))
    assert str(caught.value) == (
        "BatchNormalization 'bn': call must come after build; got no variables. Call the layer "
        "itself."
    )


def test_an_unknown_keyword_of_add_weight_is_refused(graph):
    with pytest.raises(TypeError) as caught:
        Layer(name="bn").add_weight("w", (3,), collections=["mine"])
    assert str(caught.value) == (
        "BatchNormalization 'bn': the keyword arguments of add_weight must be known ones; got "
        "['collections']."
    )


def test_added_weights_updates_and_losses_are_the_layers(session):
    layer = Layer(name="bn")
    trained = layer.add_weight("w", (3,), regularizer=tf.reduce_sum)
    kept = layer.add_variable("k", (), trainable=False, initializer=v1.zeros_initializer())
    on_read = tf.VariableSynchronization.ON_READ
    other = layer.add_weight("r", (), synchronization=on_read)
    layer.add_loss([tf.constant(1.0), lambda: None])
    layer.add_loss(lambda: tf.constant(2.0), inputs=trained)
    layer.add_update([lambda: v1.assign_add(kept, 1.0)])
    layer(placeholder(6, 4), training=True)
    names = ["w", "gamma", "beta", "k", "r", "moving_mean", "moving_variance"]
    assert [one.op.name for one in layer.variables] == [f"bn/{name}" for name in names]
    assert other not in layer.trainable_variables
    assert len(layer.updates) == 3
    assert v1.get_collection(v1.GraphKeys.UPDATE_OPS) == layer.updates
    assert v1.get_collection(v1.GraphKeys.REGULARIZATION_LOSSES) == layer.losses
    assert (len(layer.get_losses_for(None)), len(layer.get_losses_for(trained))) == (2, 1)


def test_a_configuration_makes_the_layer_anew():
    """As plain values, with what was given: axis and fused are not those that build resolved."""
    options = {
        "axis": -1, "momentum": 0.5, "renorm": True, "renorm_clipping": {"rmax": 2.0},
        "fused": False, "virtual_batch_size": 2, "beta_initializer": "ones", "name": "bn",
        "gamma_initializer": v1.truncated_normal_initializer(1.0, 0.1), "gamma_regularizer": "l2",
    }  # fmt: skip
    with tf.Graph().as_default():
        layer = Layer(**options)
        layer(placeholder(6, 4))
        config = json.loads(json.dumps(layer.get_config()))
    with tf.Graph().as_default():
        again = Layer.from_config(config)
        assert (again.axis, again.name, again.fused) == (-1, "bn", False)
        again(placeholder(6, 3, 4))
        assert again.get_config() == config
        assert len(again.losses) == 1
        assert again.beta_initializer(shape=(2,)).op.type == "Const"


def test_the_configuration_has_the_originals_keys_and_plain_values():
    configs = []
    for make in (Layer, original):
        with tf.Graph().as_default(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = make(renorm=True, renorm_clipping={"rmax": 2.0}, virtual_batch_size=2)
            layer(placeholder(6, 4))
            config = layer.get_config()
            configs.append({
                name: value for name, value in config.items() if not name.endswith("initializer")
            })  # fmt: skip
            assert set(config) >= set(configs[0])
    theirs = configs[1] | {"axis": -1}  # D05, D07
    assert configs[0] == theirs


def test_an_adjustment_is_not_in_the_configuration_and_says_so(graph):
    layer = Layer(name="bn", adjustment=lambda shape: (1.0, 0.0))
    message = (
        "BatchNormalization 'bn': adjustment is a function and is not saved; set it again on the "
        "loaded layer."
    )
    with pytest.warns(UserWarning, match="adjustment") as caught:
        config = layer.get_config()
    assert [str(one.message) for one in caught] == [message]
    assert "adjustment" not in config


def test_setting_axis_or_fused_later_counts(session):
    x = placeholder(*X.shape)
    layer = Layer(momentum=0.0)
    layer.axis, layer.fused = 1, False
    layer(x, training=True)
    assert (layer.axis, layer.fused, layer.moving_mean.shape.as_list()) == ([1], False, [3])
    session.run(v1.global_variables_initializer())
    session.run(layer.updates, {x: X})
    got = session.run(layer.moving_variance)
    np.testing.assert_allclose(got, X.var((0, 2, 3)), rtol=1e-5)


def test_a_layer_is_a_module_whose_variables_are_found(graph):
    module = tf.Module()
    module.bn = Layer()
    module.bn(placeholder(6, 4))
    assert len(module.variables) == 4
    assert [one.op.name for one in module.trainable_variables] == [
        "batch_normalization/gamma",
        "batch_normalization/beta",
    ]


def test_a_model_of_tf_keras_finds_variables_updates_and_losses_and_runs_them():
    import tf_keras

    with tf.Graph().as_default(), v1.Session() as session:

        class Model(tf_keras.Model):
            def __init__(self):
                super().__init__()
                self.bn = Layer(momentum=0.0, gamma_regularizer=lambda g: tf.reduce_sum(g * g))

            def call(self, inputs, training=None):
                return self.bn(inputs, training=True)

        model = Model()
        model.compile("sgd", "mse")
        batch = X.reshape(-1, 4)
        loss = model.train_on_batch(batch, np.zeros_like(batch))
        assert len(model.updates) == 2
        assert [one.name.split("/")[-1] for one in model.trainable_weights] == ["gamma:0", "beta:0"]
        got, gamma = session.run([model.bn.moving_mean, model.bn.gamma])
    np.testing.assert_allclose(got, batch.mean(0), rtol=1e-5)
    assert 4.9 < loss < 5.1  # variances of one, and the squares of four ones
    assert not np.any(gamma == 1)
