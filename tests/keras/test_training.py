"""`fit`, `evaluate`, `predict` and freezing, as users do them, with the default `jit_compile`."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from batchnorm import keras as ours

pytestmark = pytest.mark.keras
array = keras.ops.convert_to_numpy

RNG = np.random.default_rng(11)
X = RNG.normal(2.0, 3.0, (24, 6)).astype("float32")
Y = RNG.normal(size=(24, 1)).astype("float32")


def arrays(layer):
    return {variable.name: np.array(array(variable)) for variable in layer.variables}


def compiled(*layers, shape=(6,), **options):
    model = keras.Sequential([keras.layers.Input(shape), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    return model


def fit(model, x=X, y=Y, **options):
    settings = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    return model.fit(x, y, **{**settings, **options})


def changed(before, layer):
    """The names of the layer's variables that are not as they were."""
    after = arrays(layer)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def changed_by_fit(model, layer):
    before = arrays(layer)
    fit(model)
    return changed(before, layer)


@pytest.mark.parametrize("renorm", [False, True])
def test_fit_ends_at_the_weights_of_keras_own_layer(renorm):
    theirs, mine = (
        compiled(module.BatchNormalization(momentum=0.8, renorm=renorm, renorm_momentum=0.7))
        for module in (keras.layers, ours)
    )
    mine.set_weights(theirs.get_weights())
    fit(theirs)
    fit(mine)
    for a, b in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"renorm": True, "renorm_clipping": {"rmax": 2.0, "dmax": 3.0}},
        {"virtual_batch_size": 4},
        {"virtual_batch_size": 4, "renorm": True, "zero_debias": "both"},
        {"zero_debias": "mean", "unbiased_moving_variance": True},
        {"synchronized": True, "pooled_moving_variance": True, "virtual_batch_size": 2},
        {"adjustment": lambda shape: (np.float32(1.5), np.float32(0.1))},
    ],
    ids=["renorm", "ghost", "ghost renorm debiased", "debiased", "pooled", "adjusted"],
)
def test_every_mode_trains_with_fit(options):
    layer = ours.BatchNormalizationBase(**options)
    history = fit(compiled(layer), epochs=4)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert int(array(layer.num_updates)) == 12


def test_the_statistics_after_fit_are_those_of_the_batches():
    layer = ours.BatchNormalization(momentum=0.75)
    fit(compiled(layer), epochs=1)
    mean, variance = 0.0, 1.0
    for batch in np.split(X.astype("f8"), 3):
        mean = 0.75 * mean + 0.25 * batch.mean(0)
        variance = 0.75 * variance + 0.25 * batch.var(0)
    np.testing.assert_allclose(array(layer.moving_mean), mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(array(layer.moving_variance), variance, rtol=1e-5)


def test_nothing_is_traced_again_for_another_step(engine):
    traces = []

    class Counted(ours.BatchNormalization):
        def call(self, inputs, training=None, mask=None, batch_weights=None):
            traces.append(1)
            return super().call(inputs, training, mask, batch_weights)

    clipping = {"rmax": lambda step: 1.0 + 0.1 * step}
    model = compiled(Counted(renorm=True, renorm_clipping=clipping))
    fit(model, epochs=1)
    first = len(traces)
    fit(model, epochs=3)
    steps = 9 if engine.name == "torch" else 0  # torch runs eagerly: a call for each step
    assert len(traces) - first == steps


def test_evaluate_and_predict_change_nothing():
    layer = ours.BatchNormalization(renorm=True)
    model = compiled(layer)
    fit(model)
    before = arrays(layer)
    model.evaluate(X[:7], Y[:7], verbose=0)
    model.predict(X[:5], verbose=0)
    assert changed(before, layer) == set()


def test_predict_is_inference():
    layer = ours.BatchNormalization(momentum=0.5)
    model = keras.Sequential([keras.layers.Input((6,)), layer])
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    moving = {name: value.astype("f8") for name, value in arrays(layer).items()}
    want = (X - moving["moving_mean"]) / np.sqrt(moving["moving_variance"] + 1e-3)
    want = want * moving["gamma"] + moving["beta"]
    np.testing.assert_allclose(model.predict(X, verbose=0), want, rtol=1e-4, atol=1e-5)


def test_a_ghost_batch_model_evaluates_and_predicts_any_number_of_rows():
    model = compiled(ours.BatchNormalization(virtual_batch_size=4))
    fit(model)
    assert np.isfinite(model.evaluate(X[:7], Y[:7], verbose=0))
    assert model.predict(X[:5], verbose=0).shape == (5, 1)


def test_unknown_sizes_are_fine():
    layer = ours.BatchNormalization(momentum=0.0)
    model = keras.Sequential(
        [keras.layers.Input((None, None, 3)), layer, keras.layers.GlobalAveragePooling2D()]
    )
    model.compile("sgd", "mse")
    for shape in ((4, 5, 2, 3), (6, 3, 4, 3)):
        x = RNG.normal(1.0, 2.0, shape).astype("float32")
        model.train_on_batch(x, np.zeros((shape[0], 3)))
        np.testing.assert_allclose(array(layer.moving_mean), x.mean((0, 1, 2)), atol=1e-5)


def test_regularizers_add_to_the_loss():
    layer = ours.BatchNormalization(
        beta_regularizer=keras.regularizers.L1(0.1),
        gamma_regularizer=keras.regularizers.L2(0.2),
        moving_mean_initializer="ones",  # statistics are not penalized (D44)
    )
    layer.build((None, 3))
    layer.beta.assign([1.0, -2.0, 3.0])
    total = sum(float(array(loss)) for loss in layer.losses)
    assert total == pytest.approx(0.1 * 6 + 0.2 * 3)


def test_constraints_hold_after_a_step():
    layer = ours.BatchNormalization(
        gamma_constraint=keras.constraints.UnitNorm(axis=0), beta_constraint="non_neg"
    )
    fit(compiled(layer), epochs=1)
    assert np.linalg.norm(array(layer.gamma)) == pytest.approx(1, abs=1e-5)
    assert array(layer.beta).min() >= 0


# Freezing.


def test_a_layer_frozen_before_compile_does_not_change():
    layer = ours.BatchNormalization(renorm=True, zero_debias="both")
    fit(compiled(layer), epochs=1)
    layer.trainable = False
    assert changed_by_fit(compiled(layer), layer) == set()


def test_a_frozen_model_normalizes_with_moving_statistics_in_training():
    layer = ours.BatchNormalization()
    fit(compiled(layer), epochs=1)
    layer.trainable = False
    np.testing.assert_array_equal(array(layer(X, training=True)), array(layer(X, training=False)))


def test_an_unfrozen_layer_learns_again():
    layer = ours.BatchNormalization(trainable=False)
    model = compiled(layer)
    fit(model, epochs=1)
    layer.trainable = True
    model.compile("sgd", "mse")
    learned = {"gamma", "beta", "moving_mean", "moving_variance", "num_updates"}
    assert changed_by_fit(model, layer) == learned


def test_freezing_a_model_freezes_its_layers():
    layer = ours.BatchNormalization()
    model = compiled(layer)
    fit(model, epochs=1)
    model.trainable = False
    outer = keras.Sequential([keras.layers.Input((6,)), model, keras.layers.Dense(1)])
    outer.compile("sgd", "mse")
    assert changed_by_fit(outer, layer) == set()


def test_fixed_statistics_still_let_gamma_and_beta_learn():
    layer = ours.BatchNormalizationBase(statistics="moving", update_statistics=False)
    assert changed_by_fit(compiled(layer), layer) == {"gamma", "beta"}


def test_statistics_can_be_collected_without_being_used():
    layer = ours.BatchNormalizationBase(statistics="moving", momentum=0.0)
    layer.build(X.shape)
    y = layer(X, training=True)
    np.testing.assert_allclose(array(y), X / np.sqrt(1 + 1e-3), rtol=1e-5)
    np.testing.assert_allclose(array(layer.moving_mean), X.mean(0), rtol=1e-5)


@pytest.mark.parametrize("way", ["compile", "clone", "save"])
def test_the_switches_survive(way, tmp_path):
    layer = ours.BatchNormalizationBase(name="bn")
    model = compiled(layer)
    layer.statistics, layer.update_statistics = "batch", False
    if way == "compile":
        model.compile("adam", "mse")
    elif way == "clone":
        model = keras.models.clone_model(model)
    else:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    layer = model.get_layer("bn")
    assert (layer.statistics, layer.update_statistics) == ("batch", False)
    model.compile("sgd", "mse")
    assert changed_by_fit(model, layer) == {"gamma", "beta"}


def test_a_switch_set_after_fit_holds_in_the_next_compile():
    layer = ours.BatchNormalizationBase()
    model = compiled(layer)
    fit(model, epochs=1)
    layer.update_statistics = False
    model.compile("sgd", "mse")
    assert changed_by_fit(model, layer) == {"gamma", "beta"}


# Renorm clipping.


@pytest.mark.parametrize("kind", ["schedule", "function"])
def test_a_clipping_schedule_follows_the_number_of_updates(kind):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 3.0)  # 1, 1.5, 2, 2.5, 3, 3
    if kind == "function":
        rmax = lambda step: 1.0 + 0.5 * keras.ops.minimum(step, 4.0)  # noqa: E731
    else:
        rmax = schedule
    layer = ours.BatchNormalization(
        renorm=True, renorm_clipping={"rmax": rmax}, renorm_momentum=1.0, epsilon=0.0
    )
    x = 10.0 * X  # r is about 30, so that rmax is what it becomes
    seen = []
    for _ in range(6):
        y = array(layer(x, training=True))
        seen.append(float(y.std(0).mean()))
    np.testing.assert_allclose(seen, [1.0, 1.5, 2.0, 2.5, 3.0, 3.0], rtol=1e-4)


def test_a_clipping_schedule_goes_on_in_a_loaded_model(tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 100, 3.0)
    layer = ours.BatchNormalization(
        name="bn", renorm=True, renorm_clipping={"rmax": schedule}, renorm_momentum=1.0
    )
    model = compiled(layer)
    fit(model, epochs=3)  # 9 updates
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("bn")
    assert int(array(loaded.num_updates)) == 9
    y = array(loaded(10.0 * X, training=True))
    y = (y - array(loaded.beta)) / array(loaded.gamma)
    np.testing.assert_allclose(y.std(0), 1.0 + 2.0 * 9 / 100, rtol=1e-3)


def test_a_clipping_variable_may_change_between_steps_of_fit():
    rmax = keras.Variable(1.0, trainable=False)
    layer = ours.BatchNormalization(
        renorm=True, renorm_clipping={"rmax": rmax}, renorm_momentum=1.0, epsilon=0.0
    )
    model = keras.Sequential([keras.layers.Input((6,)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    zeros = np.zeros_like(X)
    x = 10.0 * (X - X.mean(0))
    losses = []
    for value in (1.0, 2.0):
        rmax.assign(value)
        losses.append(float(model.train_on_batch(x, zeros)))
    np.testing.assert_allclose(losses, [1.0, 4.0], rtol=1e-3)  # rmax squared


# Bad batches.


def fitted():
    layer = ours.BatchNormalization(renorm=True)
    model = compiled(layer)
    fit(model, epochs=1)
    return layer, model


STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nonfinite_value_leaves_its_channel_as_it_was_and_the_others_moving(value):
    layer, model = fitted()
    before = arrays(layer)
    x = X[:8].copy()
    x[3, 2] = value
    model.train_on_batch(x, Y[:8])
    after = arrays(layer)
    channel = np.arange(6) == 2
    for name in STATISTICS:
        np.testing.assert_array_equal(before[name] == after[name], channel, err_msg=name)
        assert np.isfinite(after[name]).all()
    assert after["skipped_updates"].tolist() == channel.tolist()


def test_an_empty_batch_changes_no_statistics():
    layer, _ = fitted()
    before = arrays(layer)
    y = layer(X[:0], training=True)
    assert tuple(y.shape) == (0, 6)
    after = arrays(layer)
    assert all(np.array_equal(before[name], after[name]) for name in STATISTICS)


def test_nonfinite_values_can_be_an_error():
    layer = ours.BatchNormalization(on_nonfinite="raise", name="bn")
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(FloatingPointError, match="the batch must have a finite mean"):
        layer(x, training=True)
