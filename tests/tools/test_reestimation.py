"""Re-estimation: statistics of all the data, whatever batches it comes in."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.keras import BatchNormalization
from tool_models import KINDS, dense, pieces, rows, statistics, weights_of

pytestmark = pytest.mark.keras

SPLITS = {
    "one batch": (),
    "uneven": (7, 20),
    "with a single row": (1, 30),
    "with an empty batch": (16, 0, 3),
    "starting empty": (0, 10),
    "row by row": tuple([1] * 40),
}
X = rows(61)


def moments(x: np.ndarray, axes: tuple[int, ...] = (0,)) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance by NumPy in float64."""
    return x.mean(axes, dtype=np.float64), x.var(axes, dtype=np.float64)


def assert_settled(layer, x, axes=(0,)):
    mean, variance = statistics(layer)
    wanted_mean, wanted_variance = moments(x, axes)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, wanted_variance, rtol=1e-5)


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_exact_equals_numpy_over_all_rows_for_any_split(kind, split):
    model = dense(kind)
    batchnorm.reestimate(model, pieces(X, *split))
    assert_settled(model.get_layer("first"), X)


@pytest.mark.parametrize("split", [(7, 20), (1, 30)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_settles_every_layer_exactly_for_any_split(kind, split):
    model = dense(kind)
    batchnorm.reestimate(model, pieces(X, *split), layer_by_layer=True)
    assert_settled(model.get_layer("first"), X)
    inner = keras.Model(model.inputs, model.layers[1].output)
    assert_settled(model.get_layer("second"), np.asarray(inner.predict(X, verbose=0)))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_any_axis_of_images_is_pooled_over_all_others(axis):
    x = np.random.default_rng(3).normal(2, 3, (19, 4, 5, 6)).astype(np.float32)
    model = keras.Sequential([keras.Input(x.shape[1:]), BatchNormalization(axis=axis)])
    batchnorm.reestimate(model, pieces(x, 1, 6))
    others = tuple(one for one in range(4) if one != axis % 4)
    assert_settled(model.layers[0], x, others)


def test_several_axes_keep_a_statistic_for_each_combination():
    x = np.random.default_rng(4).normal(2, 3, (19, 4, 5, 6)).astype(np.float32)
    model = keras.Sequential([keras.Input(x.shape[1:]), BatchNormalization(axis=[1, 3])])
    batchnorm.reestimate(model, pieces(x, 1, 6))
    mean, variance = statistics(model.layers[0])
    np.testing.assert_allclose(mean[0, :, 0], x.mean((0, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance[0, :, 0], x.var((0, 2)), rtol=1e-5)


def test_an_unbiased_layer_remembers_the_unbiased_variance():
    model = dense("ours", unbiased_moving_variance=True)
    batchnorm.reestimate(model, pieces(X, 20))
    _, variance = statistics(model.get_layer("first"))
    np.testing.assert_allclose(variance, X.var(0, ddof=1, dtype=np.float64), rtol=1e-5)


def test_rows_under_a_mask_do_not_count():
    x = np.random.default_rng(5).normal(3, 2, (12, 6, 5)).astype(np.float32)
    x[4:, 3:] = 0  # what Masking masks
    inputs = keras.Input((6, 5))
    normalized = BatchNormalization(name="norm")(keras.layers.Masking()(inputs))
    model = keras.Model(inputs, normalized)
    batchnorm.reestimate(model, pieces(x, 5))
    assert_settled(model.get_layer("norm"), x[(x != 0).any(-1)])


def test_batch_weights_count_as_repeated_rows():
    weights = np.array([0, 1, 2, 3], np.float32)
    x = rows(4)
    inputs, given = keras.Input((5,)), keras.Input(())
    outputs = BatchNormalization(name="norm")(inputs, batch_weights=given)
    model = keras.Model([inputs, given], outputs)
    batchnorm.reestimate(model, [[x[:2], weights[:2]], [x[2:], weights[2:]]])
    assert_settled(model.get_layer("norm"), np.repeat(x, weights.astype(int), axis=0))


def test_average_is_the_mean_of_the_batches_means_and_variances():
    model = dense("ours")
    batches = pieces(X, 10, 20)
    batchnorm.reestimate(model, batches, method="average")
    mean, variance = statistics(model.get_layer("first"))
    np.testing.assert_allclose(mean, np.mean([b.mean(0) for b in batches], 0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.mean([b.var(0) for b in batches], 0), rtol=1e-5)


def test_ema_weighs_the_newest_batch_most():
    model = dense("ours", momentum=0.5)
    batches = pieces(X, 10, 20)
    batchnorm.reestimate(model, batches, method="ema")
    mean, variance = statistics(model.get_layer("first"))
    weights = [1 / 7, 2 / 7, 4 / 7]
    wanted = sum(w * b.mean(0, dtype=np.float64) for w, b in zip(weights, batches, strict=True))
    np.testing.assert_allclose(mean, wanted, rtol=1e-5)
    wanted = sum(w * b.var(0, dtype=np.float64) for w, b in zip(weights, batches, strict=True))
    np.testing.assert_allclose(variance, wanted, rtol=1e-5)


# with a third batch of as many rows, the channel has seen then what the others had seen before
@pytest.mark.parametrize("split", [(20, 20), (20, 20, 20)])
def test_a_batch_that_is_not_finite_is_left_out_for_its_channel_and_reported(split):
    x = X.copy()
    x[25, 2] = np.nan
    model = dense("ours")
    result = batchnorm.reestimate(model, pieces(x, *split))
    mean, _ = statistics(model.get_layer("first"))
    np.testing.assert_allclose(mean[2], np.delete(X[:, 2], np.s_[20:40]).mean(), rtol=1e-5)
    np.testing.assert_allclose(np.delete(mean, 2), np.delete(X.mean(0), 2), rtol=1e-5)
    assert (result.layers[0].name, result.layers[0].skipped) == ("first", 1)


def test_a_channel_that_missed_a_batch_passes_on_what_the_next_one_has():
    """What it has pooled, nothing, was mixed into the batch with the weight of other channels."""
    x = X.copy()
    x[:20, 2] = np.nan
    model = keras.Sequential(
        [keras.Input((5,)), BatchNormalization(name="one"), BatchNormalization(name="two")]
    )
    batchnorm.reestimate(model, pieces(x, 20))
    mean, variance = statistics(model.get_layer("two"))
    np.testing.assert_allclose(mean, 0, atol=0.3)
    np.testing.assert_allclose(mean[2], 0, atol=1e-5)
    np.testing.assert_allclose(variance[2], 1, atol=1e-3)


def test_steps_limits_the_batches():
    model = dense("ours")
    assert batchnorm.reestimate(model, pieces(X, 10, 20), steps=2).batches == 2
    assert_settled(model.get_layer("first"), X[:30])


def test_a_pattern_leaves_other_layers_alone():
    model = dense("ours")
    batchnorm.reestimate(model, X, pattern="sec*")
    assert [one.tolist() for one in statistics(model.get_layer("first"))] == [[0.0] * 5, [1.0] * 5]
    assert statistics(model.get_layer("second"))[0].any()


def test_a_shared_layer_pools_all_its_calls():
    a, b, norm = keras.Input((5,)), keras.Input((5,)), BatchNormalization(name="norm")
    model = keras.Model([a, b], [norm(a), norm(b)])
    batchnorm.reestimate(model, [[X[:20], X[20:40]]])
    assert_settled(norm, X[:40])


def test_renorm_starts_from_what_was_estimated():
    model = dense("ours", renorm=True)
    batchnorm.reestimate(model, X)
    layer = model.get_layer("first")
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(one.value))
        for one in (layer.renorm_mean, layer.renorm_stddev)
    )
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, np.sqrt(X.var(0) + 1e-3), rtol=1e-5)


def test_training_after_zero_debias_goes_on_from_what_was_estimated():
    model = dense("ours", zero_debias="both", momentum=0.9)
    batchnorm.reestimate(model, X)
    layer = model.get_layer("first")
    mean, variance = statistics(layer)
    layer(X[:10], training=True)
    after_mean, after_variance = statistics(layer)
    np.testing.assert_allclose(after_mean, 0.9 * mean + 0.1 * X[:10].mean(0), rtol=1e-5)
    np.testing.assert_allclose(after_variance, 0.9 * variance + 0.1 * X[:10].var(0), rtol=1e-4)


def interrupted(batches):
    yield batches[0]
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_leaves_the_model_bit_for_bit(kind):
    model = dense(kind)
    model(X, training=True)
    before, calls = weights_of(model), [layer.call for layer in model.layers]
    with pytest.raises(KeyboardInterrupt):
        batchnorm.reestimate(model, interrupted(pieces(X, 10)))
    assert weights_of(model) == before
    assert [layer.call for layer in model.layers] == calls
    assert not any("call" in vars(layer) for layer in model.layers)


def test_an_interruption_while_results_are_stored_leaves_the_model_bit_for_bit(monkeypatch):
    model = dense("ours")
    before = weights_of(model)
    from batchnorm.tools.norm_keras import OwnNorm

    assign = OwnNorm.set_host_statistics

    def stopping(norm, mean, variance):
        assign(norm, mean, variance)
        if norm.name == "second":
            raise KeyboardInterrupt

    monkeypatch.setattr(OwnNorm, "set_host_statistics", stopping)
    with pytest.raises(KeyboardInterrupt):
        batchnorm.reestimate(model, X)
    assert weights_of(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_manager_restores_the_statistics(kind):
    model = dense(kind)
    before = weights_of(model)
    with batchnorm.reestimated(model, X) as result:
        assert_settled(model.get_layer("first"), X)
        assert result.method == "exact"
    assert weights_of(model) == before


def test_arrays_with_labels_datasets_and_dictionaries_are_data():
    inputs = keras.Input((5,), name="x")
    model = keras.Model({"x": inputs}, BatchNormalization(name="norm")(inputs))
    labels = np.zeros(len(X))
    for data in ({"x": X}, ({"x": X}, labels), [({"x": X[:9]}, labels), {"x": X[9:]}]):
        batchnorm.reestimate(model, data)
        assert_settled(model.get_layer("norm"), X)


def test_a_py_dataset_is_data():
    class Pairs(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return pieces(X, 20)[index], np.zeros(1)

    model = dense("ours")
    batchnorm.reestimate(model, Pairs())
    assert_settled(model.get_layer("first"), X)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (
            ValueError,
            "reestimate: method must be one of 'exact', 'average', 'ema'; got 'mean'.",
            {"method": "mean"},
        ),
        (ValueError, "reestimate: steps must be a positive integer; got 0.", {"steps": 0}),
        (
            ValueError,
            "reestimate: batch_size must be a positive integer; got 2.5.",
            {"batch_size": 2.5},
        ),
        (
            ValueError,
            "reestimate: pattern must match a batch-normalization layer; got 'x*'. The first of 2 "
            "is 'first'.",
            {"pattern": "x*"},
        ),
        (
            TypeError,
            "reestimate: data must be an array, a tuple (x, labels) or batches of them; got int.",
            {"data": 3},
        ),
        (ValueError, "reestimate: data must hold at least one row; got none.", {"data": X[:0]}),
        (
            TypeError,
            "reestimate: data must be readable more than once with layer_by_layer=True; got "
            "list_iterator. Pass a list of batches or an array.",
            {"data": iter([X]), "layer_by_layer": True},
        ),
        (
            TypeError,
            "reestimate: model must be a Keras model, a PyTorch module or an nnx module; got "
            "builtins.str. Import its framework and build the model first.",
            {"model": "model"},
        ),
        (
            ValueError,
            "reestimate: model must be built; got one whose layer 'norm' is not. Call it on a "
            "batch first.",
            {"model": keras.Sequential([BatchNormalization(name="norm")])},
        ),
        (
            ValueError,
            "reestimate: model must have at least one batch-normalization layer with moving "
            "statistics; got Sequential without one.",
            {"model": keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])},
        ),
    ],
)
def test_each_wrong_argument_is_named(error, message, change):
    arguments = {"model": dense("ours"), "data": X, **change}
    with pytest.raises(error) as raised:
        batchnorm.reestimate(**arguments)
    assert str(raised.value) == message
