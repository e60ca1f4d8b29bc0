"""Configurations: they hold what the user gave, in JSON, and make the same layer again."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from batchnorm import keras as ours

pytestmark = pytest.mark.keras

SCHEDULE = keras.optimizers.schedules.PolynomialDecay(1.0, 20, 3.0)
# Everything that a configuration can hold, away from its default.
EVERYTHING = {
    "axis": [1, -1],
    "momentum": 0.7,
    "epsilon": 1e-2,
    "center": False,
    "gamma_initializer": "zeros",
    "moving_mean_initializer": "ones",
    "moving_variance_initializer": keras.initializers.Constant(2.0),
    "beta_regularizer": keras.regularizers.L1(0.1),
    "gamma_regularizer": keras.regularizers.L2(0.2),
    "beta_constraint": keras.constraints.UnitNorm(),
    "gamma_constraint": keras.constraints.NonNeg(),
    "renorm": True,
    "renorm_clipping": {"rmax": SCHEDULE, "dmax": 3.0},
    "renorm_momentum": 0.6,
    "fused": False,
    "trainable": False,
    "virtual_batch_size": 2,
    "name": "everything",
    "dtype": "mixed_bfloat16",
    "synchronized": True,
    "unbiased_moving_variance": True,
    "pooled_moving_variance": True,
    "statistics": "batch",
    "update_statistics": False,
    "on_nonfinite": "propagate",
    "zero_debias": "both",
    "train_parameters": False,
    "activation": "relu",
}


def test_a_configuration_holds_every_option_but_adjustment():
    given = set(ours.BatchNormalizationBase.__init__.__kwdefaults__)
    code = ours.BatchNormalizationBase.__init__.__code__
    given |= set(code.co_varnames[1 : code.co_argcount])
    assert set(ours.BatchNormalizationBase().get_config()) == given - {"adjustment"} | {"dtype"}


@pytest.mark.parametrize("cls", [ours.BatchNormalizationBase, ours.BatchNormalization])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_a_layer_from_a_configuration_has_the_same_configuration(cls, options):
    config = cls(**options).get_config()
    assert cls.from_config(config).get_config() == config


def test_a_configuration_holds_what_the_user_gave():
    config = ours.BatchNormalization(**EVERYTHING).get_config()
    plain = (bool, int, float, str, type(None), list)
    given = {name: one for name, one in EVERYTHING.items() if isinstance(one, plain)}
    for name in ("gamma_initializer", "moving_mean_initializer", "dtype"):
        del given[name]  # objects in the configuration
    assert {name: config[name] for name in given} == given


def test_a_configuration_survives_json():
    config = ours.BatchNormalization(**EVERYTHING).get_config()
    again = ours.BatchNormalization.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config


@pytest.mark.parametrize("axis", [-1, [1, -1]])
def test_build_does_not_change_the_configuration(axis):
    layer = ours.BatchNormalization(axis=axis, virtual_batch_size=2, renorm=True)
    before = layer.get_config()
    layer.build((4, 3, 5))
    assert layer.get_config() == before
    assert layer.get_config()["axis"] == axis


def test_a_schedule_comes_back_from_a_configuration():
    layer = ours.BatchNormalization(renorm=True, renorm_clipping={"rmax": SCHEDULE})
    again = ours.BatchNormalization.from_config(layer.get_config())
    assert again.renorm_clipping["rmax"].get_config() == SCHEDULE.get_config()


@pytest.mark.parametrize("value", [1.5, [1.5, 2.5]], ids=["one", "per channel"])
@pytest.mark.parametrize(
    "kind",
    [np.float32, np.array, keras.ops.convert_to_tensor, keras.Variable],
    ids=["NumPy", "array", "tensor", "variable"],
)
def test_a_clipping_value_of_any_kind_is_saved_as_numbers(kind, value):
    layer = ours.BatchNormalization(renorm=True, renorm_clipping={"rmax": kind(value)})
    assert layer.get_config()["renorm_clipping"] == {"rmax": value}


def test_an_adjustment_is_not_saved_and_says_so():
    layer = ours.BatchNormalization(adjustment=lambda shape: (1.0, 0.0), name="bn")
    with pytest.warns(UserWarning, match="adjustment") as caught:
        config = layer.get_config()
    assert "adjustment" not in config
    assert [str(one.message) for one in caught] == [
        "BatchNormalization 'bn': adjustment is a function and is not saved; set it again on the "
        "loaded layer."
    ]


@pytest.mark.parametrize("options", [{}, {"renorm": True, "renorm_clipping": {"rmax": 2.0}}])
def test_a_configuration_of_keras_own_layer_loads(options):
    theirs = keras.layers.BatchNormalization(axis=1, momentum=0.8, **options)
    config = theirs.get_config()
    mine = ours.BatchNormalization.from_config(config).get_config()
    assert {name: mine[name] for name in config} == config


def test_the_synchronized_layer_does_not_save_what_it_always_is():
    config = ours.SyncBatchNormalization(momentum=0.8).get_config()
    assert "synchronized" not in config
    assert ours.SyncBatchNormalization.from_config(config).synchronized is True
