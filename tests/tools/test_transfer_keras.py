"""`transfer` from and to Keras, on the backend of this process, in a circle over the others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import numpy as np
import pytest

import batchnorm
import batchnorm.flax
import batchnorm.torch
from tool_models import KINDS, weights_of
from transfers_of import CHANNELS, Nnx, X, numbers_of, torch_model

pytestmark = pytest.mark.keras


def keras_model(kind: str = "ours", **options: Any) -> keras.Model:
    first, last = (KINDS[kind](name=name, **options) for name in ("first", "last"))
    dense = keras.layers.Dense(CHANNELS[1], activation="relu")
    return keras.Sequential([keras.Input((CHANNELS[0],)), first, dense, last])


@pytest.mark.parametrize(
    "modes",
    [
        {},
        {"renorm": True, "renorm_clipping": {"rmax": 2.0, "dmax": 1.0}, "zero_debias": "both"},
    ],
    ids=str,
)
def test_from_torch_over_keras_and_flax_and_back_the_numbers_are_the_same(modes):
    kind = batchnorm.torch.BatchNorm1d if modes else None
    models = [
        torch_model(*filter(None, [kind]), momentum=0.2, **modes),
        keras_model(**modes),
        Nnx(**modes),
        torch_model(*filter(None, [kind]), **modes),
    ]
    for module in (models[-1][0], models[-1][3]):
        module.reset_parameters()
    for one, other in itertools.pairwise(models):
        done = batchnorm.transfer(one, other, X)
        assert max(done.differences) <= 1e-6
    was, now = numbers_of(models[0]), numbers_of(models[-1])
    for name, value in was.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(now[name], value, err_msg=name)
    assert models[-1][0].momentum == 0.2
    assert int(models[1].get_layer("last").num_updates.value) == 9


def test_kerass_own_layer_gives_and_takes():
    own, ours, theirs = keras_model("keras"), keras_model(momentum=0.8), keras_model("keras")
    batchnorm.transfer(torch_model(), own, values=math.inf)
    done = [batchnorm.transfer(own, ours, X), batchnorm.transfer(ours, theirs, X)]
    assert max(*done[0].differences, *done[1].differences) <= 1e-6
    for one, other in zip(weights_of(own), weights_of(theirs), strict=True):
        assert one == other or len(one) > 4 * CHANNELS[1]  # but for the kernels
    assert ours.get_layer("first").momentum == own.get_layer("first").momentum == 0.9
    assert not ours.get_layer("first").unbiased_moving_variance


@pytest.mark.skipif(
    "renorm" not in keras.layers.BatchNormalization().get_config(), reason="Keras has it since 3.14"
)
@pytest.mark.parametrize("kinds", [("keras", "ours"), ("ours", "keras")])
def test_renorm_goes_between_kerass_own_layer_and_ours(kinds):
    options = {"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}}
    source, target = (keras_model(kind, **options) for kind in kinds)
    for start in range(0, 96, 16):
        source(X[start : start + 16], training=True)
    target.get_layer("first").renorm_clipping = {}
    assert max(batchnorm.transfer(source, target, X).differences) <= 2e-6
    assert target.get_layer("first").renorm_clipping == options["renorm_clipping"]


def test_several_axes_go_where_they_are_of_the_same_sizes():
    images = np.random.default_rng(1).normal(0, 1, (8, 5, 6, 3)).astype(np.float32)
    source, target, other = (
        keras.Sequential([keras.Input(shape), KINDS["ours"](axis=[1, 3], name="norm")])
        for shape in ((5, 6, 3), (5, 6, 3), (3, 6, 5))
    )
    source(images, training=True)
    assert max(batchnorm.transfer(source, target, images).differences) == 0
    assert weights_of(target) == weights_of(source)
    with pytest.raises(ValueError, match="transfer") as caught:
        batchnorm.transfer(source, other)
    assert str(caught.value) == (
        "transfer: BatchNormalization 'norm' must have 5 x 3 channels, as BatchNormalization "
        "'norm' has; got 3 x 5. Build it so."
    )


def test_a_checkpoint_of_tensorflow_1_goes_into_keras_layers(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path, random = str(tmp_path / "model"), np.random.default_rng(4)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    values = {name: random.uniform(0.5, 2, 5).astype(np.float32) for name in names}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in values.items():
            tf.compat.v1.get_variable(f"net/bn/{name}", initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, path)
    model = keras_model()
    batchnorm.transfer(path, model, mapping={"net/bn": "first"})
    norm = model.get_layer("first")
    for name, value in values.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(getattr(norm, name).value), value)


def test_images_change_their_layout():
    images = np.random.default_rng(1).normal(0, 1, (8, 6, 4, 5)).astype(np.float32)
    source = keras.Sequential([keras.Input((6, 4, 5)), KINDS["ours"](name="norm")])
    last, first = (
        batchnorm.torch.BatchNorm2d(5),
        keras.Sequential(
            [keras.Input((5, 6, 4)), KINDS["ours"](axis=1, unbiased_moving_variance=True)]
        ),
    )
    with pytest.raises(ValueError, match="values must be"):
        batchnorm.transfer(source, last)
    source.layers[0].unbiased_moving_variance = True
    for other in (last, first):
        assert max(batchnorm.transfer(source, other, images).differences) <= 1e-6


def test_a_compiled_model_takes_notice_and_what_is_frozen_stays_so():
    model, source = keras_model(), torch_model()
    model.compile(optimizer="sgd", loss="mse")
    y = np.zeros((len(X), CHANNELS[1]), np.float32)
    model.fit(X, y, verbose=0)
    batchnorm.freeze(source)
    batchnorm.transfer(source, model)
    assert not model.get_layer("first").train_parameters
    before = [weights_of(model.get_layer(name)) for name in ("first", "last")]
    model.fit(X, y, verbose=0)
    assert [weights_of(model.get_layer(name)) for name in ("first", "last")] == before
    own = keras_model("keras")
    batchnorm.transfer(model, own, values=math.inf)
    assert not own.get_layer("first").trainable
    batchnorm.freeze(source, "statistics")
    batchnorm.unfreeze(source, "parameters")
    with pytest.raises(ValueError, match="transfer") as caught:
        batchnorm.transfer(source, own, values=math.inf)
    assert str(caught.value) == (
        "transfer: what must be 'both' for Keras' own layer, whose `trainable` is one switch; got "
        "'parameters' for 'first'. Use batchnorm.keras.BatchNormalization to choose. BatchNorm1d "
        "'0' has only one of the two frozen."
    )


def test_the_activation_goes_where_there_is_one():
    source = keras_model(activation="relu", unbiased_moving_variance=True)
    target = torch_model(batchnorm.torch.BatchNorm1d)
    assert max(batchnorm.transfer(source, target, X).differences) <= 1e-6
    assert target[0].activation == "relu"
    source = keras_model(activation="tanh")
    other = keras_model()
    assert max(batchnorm.transfer(source, other, X).differences) <= 1e-6
    assert other.get_layer("last").activation is keras.activations.tanh
