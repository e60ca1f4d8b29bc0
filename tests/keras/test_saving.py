"""Weights and files: what is kept, and that Keras' own files fit."""

from __future__ import annotations

import copy

import keras
import numpy as np
import pytest

from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

CORE = ["gamma", "beta", "moving_mean", "moving_variance"]
RENORM = ["moving_stddev", "renorm_mean", "renorm_stddev"]
COUNTERS = ["num_updates", "skipped_updates"]

SCHEDULE = keras.optimizers.schedules.PolynomialDecay(1.0, 20, 3.0)


def names(variables):
    return [variable.name for variable in variables]


def small_model(*layers, shape=(5,)):
    return keras.Sequential([keras.layers.Input(shape), *layers, keras.layers.Dense(1)])


def used_layer(**options):
    """A layer after three batches, so that nothing is at its initial value."""
    layer = ours.BatchNormalization(momentum=0.5, name="bn", **options)
    rng = np.random.default_rng(5)
    for _ in range(3):
        layer(rng.normal(1.0, 2.0, (6, 5)).astype("float32"), training=True)
    for parameter in layer.trainable_variables:
        parameter.assign(rng.normal(size=5))
    return layer


def assert_same_variables(one, other):
    assert names(one.variables) == names(other.variables)
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(array(a), array(b), err_msg=a.name)


# Weights.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, CORE),
        ({"scale": False}, CORE[1:]),
        ({"renorm": True}, CORE + RENORM),
        ({"zero_debias": "mean"}, [*CORE, "biased_mean", "local_step"]),
        ({"zero_debias": "both"}, [*CORE, "biased_mean", "local_step", "biased_variance"]),
        ({"renorm": True, "zero_debias": "both"},
         [*CORE, *RENORM, "biased_mean", "local_step", "biased_stddev"]),
    ],
    ids=["plain", "no scale", "renorm", "mean", "both", "renorm and both"],
)  # fmt: skip
def test_weights_are_in_the_order_of_keras(options, expected):
    layer = ours.BatchNormalization(**options)
    layer.build((None, 5))
    assert names(layer.weights) == expected


def test_counters_are_variables_but_not_weights():
    layer = ours.BatchNormalization()
    layer.build((None, 5))
    assert names(layer.variables) == CORE + COUNTERS
    assert names(layer.non_trainable_weights) == CORE[2:]


def test_a_frozen_layer_has_no_trainable_weights():
    layer = ours.BatchNormalization(trainable=False)
    layer.build((None, 5))
    assert layer.trainable_weights == []
    assert names(layer.non_trainable_weights) == CORE


@pytest.mark.parametrize(
    ("options", "shape", "expected"),
    [
        ({}, (8, 4, 6, 3), (3,)),
        ({"axis": 1}, (8, 4, 6, 3), (4,)),
        ({"axis": [3]}, (8, 4, 6, 3), (3,)),
        ({"axis": [1, 3]}, (8, 4, 6, 3), (1, 4, 1, 3)),
        ({"axis": [3, 1]}, (8, 4, 6, 3), (1, 4, 1, 3)),
        ({"virtual_batch_size": 2}, (8, 4, 6, 3), (3,)),
        ({}, (3,), (3,)),
        ({}, (None, 0), (0,)),
    ],
)
def test_weights_have_the_documented_shape(options, shape, expected):
    layer = ours.BatchNormalization(renorm=True, **options)
    layer.build(shape)
    assert {tuple(one.shape) for one in layer.weights} == {expected}


def test_initial_statistics_come_from_the_initializers():
    layer = ours.BatchNormalization(
        renorm=True,
        moving_mean_initializer=keras.initializers.Constant(3.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
    )
    layer.build((None, 2))
    first = {name: float(array(getattr(layer, name))[0]) for name in CORE[2:] + RENORM}
    assert first == {
        "moving_mean": 3.0,
        "moving_variance": 4.0,
        "moving_stddev": 2.0,
        "renorm_mean": 3.0,
        "renorm_stddev": 2.0,
    }


@pytest.mark.parametrize("renorm", [False, True])
def test_set_weights_takes_what_keras_own_layer_gives(renorm):
    theirs = keras.layers.BatchNormalization(renorm=renorm)
    theirs.build((None, 5))
    values = [np.full(5, float(index)) for index in range(len(theirs.weights))]
    theirs.set_weights(values)
    layer = ours.BatchNormalization(renorm=renorm)
    layer.build((None, 5))
    layer.set_weights(theirs.get_weights())
    assert names(layer.weights) == names(theirs.weights)
    np.testing.assert_array_equal(layer.get_weights(), values)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("kind", ["weights.h5", "h5"])
def test_a_weights_file_of_keras_own_layer_loads(tmp_path, renorm, kind):
    theirs = small_model(keras.layers.BatchNormalization(renorm=renorm, name="bn"))
    rng = np.random.default_rng(0)
    theirs.set_weights([rng.uniform(1, 2, one.shape) for one in theirs.get_weights()])
    path = tmp_path / f"theirs.{kind}"
    if kind == "h5":  # the format of Keras 2
        import h5py
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    else:
        theirs.save_weights(path)
    mine = small_model(ours.BatchNormalization(renorm=renorm, name="bn"))
    mine.load_weights(path)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_weights_file_keeps_the_counters(tmp_path):
    layer = used_layer(renorm=True)
    model = small_model(layer)
    model.save_weights(tmp_path / "mine.weights.h5")
    other = small_model(ours.BatchNormalization(renorm=True, name="bn"))
    other.load_weights(tmp_path / "mine.weights.h5")
    assert_same_variables(other.layers[0], layer)
    assert int(array(other.layers[0].num_updates)) == 3


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("kind", ["mine.weights.h5", "mine.keras"])
def test_our_files_load_into_keras_own_layer(tmp_path, renorm, kind):
    mine = small_model(used_layer(renorm=renorm))
    if kind.endswith(".keras"):
        mine.save(tmp_path / kind)
    else:
        mine.save_weights(tmp_path / kind)
    theirs = small_model(keras.layers.BatchNormalization(renorm=renorm, name="bn"))
    theirs.load_weights(tmp_path / kind)
    assert len(theirs.get_weights()) == len(mine.get_weights())
    for a, b in zip(theirs.get_weights(), mine.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_of_ours_from_before_loads_with_its_counters():
    old = {str(index): np.full(5, 1.0 + index) for index in range(4)}
    old |= {"num_updates": np.array(7), "skipped_updates": np.arange(5)}
    layer = ours.BatchNormalization()
    layer.build((None, 5))
    layer.load_own_variables(old)
    np.testing.assert_array_equal(array(layer.moving_variance), np.full(5, 4.0))
    assert int(array(layer.num_updates)) == 7
    np.testing.assert_array_equal(array(layer.skipped_updates), np.arange(5))


def test_the_counters_of_nested_layers_are_kept(tmp_path):
    def nested():
        inner = keras.Sequential([keras.layers.Input((5,)), ours.BatchNormalization(name="bn")])
        return keras.Sequential([keras.layers.Input((5,)), inner, ours.SyncBatchNormalization()])

    model, other = nested(), nested()
    for _ in range(3):
        model(np.ones((4, 5), "float32"), training=True)
    model.save_weights(tmp_path / "mine.weights.h5")
    other.load_weights(tmp_path / "mine.weights.h5")
    found = [other.layers[0].layers[0], other.layers[1]]
    assert [int(array(layer.num_updates)) for layer in found] == [3, 3]


def test_loading_keras_own_weights_leaves_the_counters_alone(tmp_path):
    theirs = small_model(keras.layers.BatchNormalization(name="bn"))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    layer = used_layer()
    mine = small_model(layer)
    mine.load_weights(tmp_path / "theirs.weights.h5")
    assert int(array(layer.num_updates)) == 3


def test_a_file_with_other_variables_is_refused():
    layer = ours.BatchNormalization(renorm=True, name="bn")
    layer.build((None, 5))
    with pytest.raises(ValueError, match="must hold") as caught:
        layer.load_own_variables({str(index): np.zeros(5) for index in range(4)})
    assert str(caught.value) == (
        "BatchNormalization 'bn': the file must hold ['gamma', 'beta', 'moving_mean', "
        "'moving_variance', 'moving_stddev', 'renorm_mean', 'renorm_stddev']; got 4 variables. "
        "Build the layer with the options it was saved with."
    )


def test_variables_given_as_options_are_not_weights():
    layer = ours.BatchNormalization(
        momentum=keras.Variable(0.5, trainable=False),
        renorm=True,
        renorm_clipping={"rmax": keras.Variable(1.5, trainable=False)},
    )
    layer.build((None, 5))
    assert names(layer.weights) == CORE + RENORM


# Models.


def mixed_model():
    """A model with layers of every kind, after a training step."""
    model = small_model(
        ours.BatchNormalization(axis=[1, 2], momentum=0.5, name="several"),
        ours.BatchNormalization(
            momentum=0.5,
            renorm=True,
            renorm_clipping={"rmax": SCHEDULE, "dmax": 5.0},
            zero_debias="both",
            name="renorm",
        ),
        ours.SyncBatchNormalization(virtual_batch_size=2, name="ghost"),
        ours.BatchNormalizationBase(
            statistics="batch", update_statistics=False, unbiased_moving_variance=True, name="v1"
        ),
        shape=(3, 4),
    )
    rng = np.random.default_rng(2)
    model(rng.normal(size=(6, 3, 4)).astype("float32"), training=True)
    return model


X = np.random.default_rng(3).normal(size=(6, 3, 4)).astype("float32")


def test_a_model_file_keeps_variables_configuration_and_outputs(tmp_path):
    model = mixed_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    for one, other in zip(loaded.layers, model.layers, strict=True):
        assert type(one) is type(other)
        assert one.get_config() == other.get_config()
        assert_same_variables(one, other)
    np.testing.assert_array_equal(array(loaded(X)), array(model(X)))


def test_a_loaded_model_goes_on_as_the_saved_one(tmp_path):
    model = mixed_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one(X, training=True)
    for one, other in zip(loaded.layers, model.layers, strict=True):
        assert_same_variables(one, other)


def test_a_weights_file_of_a_model_restores_it(tmp_path):
    model = mixed_model()
    model.save_weights(tmp_path / "model.weights.h5")
    other = mixed_model()
    other.set_weights([np.zeros_like(one) for one in other.get_weights()])
    other.load_weights(tmp_path / "model.weights.h5")
    for one, two in zip(other.layers, model.layers, strict=True):
        assert_same_variables(one, two)


def test_a_model_with_keras_own_layer_is_cloned_to_ours():
    theirs = small_model(keras.layers.BatchNormalization(momentum=0.5, name="bn"))
    theirs.set_weights([np.arange(one.size, dtype="f4").reshape(one.shape) + 1
                        for one in theirs.get_weights()])  # fmt: skip

    def replaced(layer):
        if isinstance(layer, keras.layers.BatchNormalization):
            return ours.BatchNormalization.from_config(layer.get_config())
        return layer.__class__.from_config(layer.get_config())

    mine = keras.models.clone_model(theirs, clone_function=replaced)
    mine.set_weights(theirs.get_weights())
    assert type(mine.layers[0]) is ours.BatchNormalization
    x = np.ones((4, 5), "float32")
    np.testing.assert_allclose(array(mine(x)), array(theirs(x)), rtol=1e-6)


def test_a_cloned_model_has_the_same_options():
    model = mixed_model()
    clone = keras.models.clone_model(model)
    assert clone.get_config() == model.get_config()


def test_a_cloned_model_takes_the_weights():
    model = mixed_model()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(array(clone(X)), array(model(X)))


def test_a_layer_that_was_not_built_is_copied():
    assert not copy.deepcopy(ours.BatchNormalization(renorm=True)).built


def test_a_copied_layer_has_the_same_variables():
    layer = used_layer(renorm=True)
    assert_same_variables(copy.deepcopy(layer), layer)


@pytest.mark.parametrize(
    "cls", [ours.BatchNormalizationBase, ours.BatchNormalization, ours.SyncBatchNormalization]
)
def test_each_class_is_registered_under_its_own_name(cls):
    name = keras.saving.get_registered_name(cls)
    assert name == f"batchnorm>{cls.__name__}"
    assert keras.saving.get_registered_object(name) is cls
