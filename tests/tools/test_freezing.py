"""Freezing that holds, and words that say so."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.keras import BatchNormalization
from tool_models import KINDS, dense, rows, statistics

pytestmark = pytest.mark.keras

X = rows(24)


def remembered(model) -> list[list[float]]:
    return [
        one.tolist() for name in ("first", "second") for one in statistics(model.get_layer(name))
    ]


def parameters(model) -> list[list[float]]:
    layers = [model.get_layer(name) for name in ("first", "second")]
    return [
        keras.ops.convert_to_numpy(one.value).tolist()
        for layer in layers
        for one in (layer.gamma, layer.beta)
    ]


def fit(model) -> None:
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(X, np.ones((len(X), 3), np.float32), epochs=2, batch_size=8, verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_in_frozen_layers(kind):
    model = dense(kind)
    assert batchnorm.freeze(model) == ["first", "second"]
    before = remembered(model), parameters(model)
    fit(model)
    assert (remembered(model), parameters(model)) == before


def test_frozen_statistics_let_parameters_learn():
    model = dense("ours")
    batchnorm.freeze(model, "statistics")
    statistics_before, parameters_before = remembered(model), parameters(model)
    fit(model)
    assert remembered(model) == statistics_before
    assert parameters(model) != parameters_before


def test_frozen_parameters_let_statistics_move():
    model = dense("ours")
    batchnorm.freeze(model, "parameters")
    statistics_before, parameters_before = remembered(model), parameters(model)
    fit(model)
    assert remembered(model) != statistics_before
    assert parameters(model) == parameters_before


@pytest.mark.parametrize("what", ["statistics", "parameters", "both"])
def test_what_is_frozen_survives_trainable_clones_and_files(what, tmp_path):
    model = dense("ours")
    batchnorm.freeze(model, what)
    model.trainable = True
    path = tmp_path / "model.keras"
    model.save(path)
    for other in (model, keras.models.clone_model(model), keras.models.load_model(path)):
        before = remembered(other), parameters(other)
        fit(other)
        after = remembered(other), parameters(other)
        assert (after[0] == before[0]) is (what != "parameters")
        assert (after[1] == before[1]) is (what != "statistics")


def test_a_model_that_has_trained_obeys_at_once():
    model = dense("ours")
    fit(model)
    batchnorm.freeze(model, "statistics")
    before = remembered(model)
    model.fit(X, np.ones((len(X), 3), np.float32), batch_size=8, verbose=0)
    assert remembered(model) == before


def test_a_model_around_the_frozen_one_that_has_trained_obeys_too():
    """It went on moving the statistics on JAX and TensorFlow."""
    inner = dense("ours")
    model = keras.Sequential([keras.Input((5,)), inner, keras.layers.Dense(3)])
    fit(model)
    for change, moves in ((batchnorm.freeze, False), (batchnorm.unfreeze, True)):
        change(inner, "statistics")
        before = remembered(inner)
        model.fit(X, np.ones((len(X), 3), np.float32), batch_size=8, verbose=0)
        assert (remembered(inner) != before) is moves
    with batchnorm.frozen(inner.get_layer("first"), "statistics"):
        assert model.train_function is None
        model.fit(X, np.ones((len(X), 3), np.float32), batch_size=8, verbose=0)
    assert model.train_function is None


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
}


def go_on(model) -> None:
    model.fit(X, np.ones((len(X), 3), np.float32), batch_size=12, verbose=0, shuffle=False)


def slots(model) -> dict[str, np.ndarray]:
    """What the optimizer remembers of the last layer, and its counter."""
    return {
        one.path.rpartition("/")[2]: keras.ops.convert_to_numpy(one.value)
        for one in model.optimizer.variables
        if "dense" in one.path or "iteration" in one.path
    }


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("ours", "sgd"), ("keras", "adamw"), ("ours", "scaled")]
)
def test_a_compiled_model_goes_on_after_its_parameters_were_frozen_and_unfrozen(kind, optimizer):
    """The next `fit` failed inside Keras: its optimizer knew other variables."""
    model = dense(kind)
    model.compile(OPTIMIZERS[optimizer](), "mse")
    go_on(model)
    what = "both" if kind == "keras" else "parameters"
    for _ in range(2):
        kept = slots(model)
        batchnorm.freeze(model, what)
        assert all(np.array_equal(kept[name], value) for name, value in slots(model).items())
        before, weights = parameters(model), model.layers[-1].get_weights()
        go_on(model)
        assert parameters(model) == before
        assert not np.array_equal(model.layers[-1].get_weights()[0], weights[0])
        batchnorm.unfreeze(model, what)
        go_on(model)
        assert parameters(model) != before


def test_what_was_frozen_for_a_while_finds_its_slots_again():
    models = [dense("ours"), dense("ours")]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        go_on(model)
    with batchnorm.frozen(models[1], "parameters"):
        assert len(models[1].optimizer.variables) < len(models[0].optimizer.variables)
    for model in models:
        go_on(model)
    np.testing.assert_allclose(parameters(models[0])[0], parameters(models[1])[0], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_frozen_and_trained_is_saved_with_its_optimizer(kind, tmp_path):
    """On JAX, a step deletes the arrays that it is given: the optimizer before held the same."""
    model = dense(kind)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    go_on(model)
    batchnorm.freeze(model, "both")
    model.optimizer.learning_rate = 0.005
    go_on(model)
    for step in (None, batchnorm.unfreeze):
        if step is not None:
            step(model)
            go_on(model)
        model.save(tmp_path / "model.keras")
        config = model.get_compile_config()["optimizer"]["config"]
        assert config["learning_rate"] == pytest.approx(0.005)
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
        go_on(loaded)


def test_a_model_that_was_first_trained_frozen_learns_after_unfreeze():
    model = dense("ours")
    batchnorm.freeze(model)
    model.compile("adam", "mse")
    go_on(model)
    before = parameters(model)
    batchnorm.unfreeze(model)
    go_on(model)
    assert parameters(model) != before


@pytest.mark.parametrize("kind", KINDS)
def test_unfreeze_lets_everything_learn_again(kind):
    model = dense(kind)
    batchnorm.freeze(model)
    batchnorm.unfreeze(model)
    before = remembered(model), parameters(model)
    fit(model)
    assert remembered(model) != before[0]
    assert parameters(model) != before[1]


def test_a_pattern_chooses_layers():
    model = dense("ours")
    assert batchnorm.freeze(model, pattern="f*") == ["first"]
    assert model.get_layer("second").statistics == "auto"


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_manager_restores_even_what_was_frozen(kind):
    model = dense(kind)
    batchnorm.freeze(model, pattern="first")
    words = batchnorm.explain(model)
    with batchnorm.frozen(model):
        assert batchnorm.explain(model) != words
    assert batchnorm.explain(model) == words
    with pytest.raises(KeyboardInterrupt):
        _interrupted(model)
    assert batchnorm.explain(model) == words


def _interrupted(model) -> None:
    with batchnorm.frozen(model):
        raise KeyboardInterrupt


def test_kerass_own_layer_freezes_as_a_whole_only():
    model = dense("keras")
    with pytest.raises(ValueError, match="what must be") as raised:
        batchnorm.freeze(model, "statistics")
    assert str(raised.value) == (
        "freeze: what must be 'both' for Keras' own layer, whose `trainable` is one switch; got "
        "'statistics' for 'first'. Use batchnorm.keras.BatchNormalization to choose."
    )
    assert model.get_layer("first").trainable


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="what must be") as raised:
        batchnorm.unfreeze(dense("ours"), "gamma")
    assert str(raised.value) == (
        "unfreeze: what must be one of 'statistics', 'parameters', 'both'; got 'gamma'."
    )


def test_train_parameters_must_be_a_bool():
    with pytest.raises(TypeError, match="train_parameters") as raised:
        BatchNormalization(name="norm", train_parameters=1)
    assert str(raised.value) == (
        "BatchNormalization 'norm': train_parameters must be True or False; got 1."
    )


def explained(layer) -> str:
    if not layer.built:
        layer.build((None, 5))
    words = batchnorm.explain(layer)
    return words[: words.index(" It runs on")]


BATCH, MOVING = (
    "normalizes with the batch's own statistics",
    "normalizes with the moving statistics",
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {},
            f"With training=True it {BATCH} and updates the moving ones (keeping 0.99 of the old); "
            f"with training=False it {MOVING} and leaves them alone. Gamma and beta are trained.",
        ),
        (
            {"trainable": False},
            f"With training=True and False alike it {MOVING} and leaves them alone, because "
            "trainable=False. Gamma and beta are not trained.",
        ),
        (
            {"statistics": "batch", "update_statistics": False, "center": False},
            f"With training=True and False alike it {BATCH} and leaves the moving ones alone, "
            "because statistics='batch', update_statistics=False. Gamma is trained.",
        ),
        (
            {"virtual_batch_size": 4, "renorm": True, "scale": False, "center": False},
            "With training=True it normalizes ghost batches of 4 with their own statistics, "
            "corrected by renorm, and updates the moving ones (keeping 0.99 of the old); with "
            f"training=False it {MOVING} and leaves them alone. It has neither gamma nor beta.",
        ),
    ],
)
def test_explain_says_what_the_next_call_will_do(options, words):
    assert explained(BatchNormalization(**options)) == words


def test_explain_knows_kerass_own_layer():
    layer = keras.layers.BatchNormalization(momentum=0.9, scale=False)
    assert explained(layer) == (
        f"With training=True it {BATCH} and updates the moving ones (keeping 0.9 of the old); with "
        f"training=False it {MOVING} and leaves them alone. Beta is trained."
    )
    layer.trainable = False
    assert explained(layer) == (
        f"With training=True and False alike it {MOVING} and leaves them alone, because "
        "trainable=False. Beta is not trained."
    )
    layer = keras.layers.BatchNormalization(momentum=1.0)
    assert explained(layer).startswith(
        f"With training=True it {BATCH} and leaves the moving ones alone; with training=False it "
        f"{MOVING} and leaves them alone, because momentum=1."
    )


def test_explain_names_the_path_and_the_plan_and_counts_updates():
    layer = BatchNormalization(fused=False)
    layer(X, training=True)
    assert batchnorm.explain(layer).endswith(
        "It runs on composite operations. Not on our fused kernels: fused is False. Its last call "
        "followed Plan(way='at once', batch=True, update=True, kernels=False, "
        f"reason='fused is False.', shape={X.shape}, axes=({X.ndim - 1},), dtype='float32', "
        "options=(fused=False)). It has counted 1 update of its statistics."
    )
