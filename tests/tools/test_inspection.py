"""Inspection: the numbers are right, the model stays as it was, and each cause is found."""

from __future__ import annotations

import io
import json

import keras
import numpy as np
import pytest

import batchnorm
from batchnorm.keras import BatchNormalization
from tool_models import KINDS, dense, pieces, rows, weights_of

pytestmark = pytest.mark.keras

X = rows(64)


def fitted(kind: str = "ours", **options) -> keras.Model:
    model = dense(kind, **options)
    batchnorm.reestimate(model, X, batch_size=64)
    return model


def set_statistics(layer, mean=None, variance=None) -> None:
    for variable, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        if value is not None:
            variable.assign(np.asarray(value, np.float32))


def causes(report, severity="note") -> list[tuple[str, str]]:
    return [(one.layer, one.cause) for one in report.alarms(severity)]


@pytest.mark.parametrize("kind", KINDS)
def test_distance_and_ratio_are_those_of_numpy(kind):
    model = fitted(kind)
    layer = model.get_layer("first")
    mean, variance = X.mean(0, dtype=np.float64), X.var(0, dtype=np.float64)
    set_statistics(layer, mean + 2 * np.sqrt(variance), variance * 4)
    row = batchnorm.inspect(model, pieces(X, 20, 20)).rows[0]
    np.testing.assert_allclose(row.mean_distance, 2, rtol=1e-2)
    np.testing.assert_allclose(row.log_variance_ratio, np.log(4), rtol=1e-2)
    assert (row.channels, row.values) == (5, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_that_fit_one_batch_leave_no_drift(kind):
    report = batchnorm.inspect(fitted(kind), X, batch_size=64)
    assert report.healthy
    assert [row.drift < 1e-3 for row in report.rows] == [True, True]


def test_drift_is_the_distance_of_outputs_in_standard_deviations():
    model = fitted()
    set_statistics(model.get_layer("first"), X.mean(0) + 2 * X.std(0))
    report = batchnorm.inspect(model, X, batch_size=64)
    np.testing.assert_allclose(report.rows[0].drift, 2, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_bit_for_bit(kind):
    model = dense(kind)
    model(X, training=True)
    before = weights_of(model)
    batchnorm.inspect(model, X)
    assert weights_of(model) == before
    assert not any("call" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_leaves_the_model_bit_for_bit(kind):
    model = dense(kind)
    before = weights_of(model)

    def batches():
        yield X[:9]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batchnorm.inspect(model, batches())
    assert weights_of(model) == before
    assert not any("call" in vars(layer) for layer in model.layers)


def test_a_layer_behind_a_sick_one_is_not_blamed():
    model = fitted()
    set_statistics(model.get_layer("first"), np.full(5, 90.0))
    assert causes(batchnorm.inspect(model, X, batch_size=64), "error") == [("first", "other data")]


def from_keras() -> keras.Model:
    """Our layers with the weights of Keras' own, trained on the rows."""
    theirs = dense("keras", momentum=0.5)
    for _ in range(30):
        theirs(X, training=True)
    model = dense("ours", momentum=0.5)
    model.set_weights(theirs.get_weights())
    return model


@pytest.mark.parametrize("make", [fitted, from_keras])
def test_statistics_that_no_update_made_are_not_called_untouched(make):
    """They were, because their layer has counted no update."""
    model = make()
    assert batchnorm.inspect(model, X, batch_size=64).alarms("error") == []
    (alarm,) = batchnorm.inspect(model, X + 300, batch_size=64).alarms("error")
    assert (alarm.layer, alarm.cause) == ("first", "other data")
    assert "No update was counted: a file, a re-estimate or an initializer made them" in alarm.words


def test_updates_that_were_all_refused_are_told_as_such():
    model = dense("ours")
    bad = np.full_like(X, np.nan)
    for _ in range(2):
        model.get_layer("first")(bad, training=True)
    alarm = batchnorm.inspect(model, X, batch_size=64).alarms("error")[0]
    assert (alarm.layer, alarm.cause) == ("first", "never updated")
    assert "They are what they were at the start: 2 updates changed nothing." in alarm.words


def test_an_update_counter_tells_other_data_from_never_updated():
    model = fitted()
    layer = model.get_layer("first")
    layer.num_updates.assign(10_000)
    set_statistics(layer, np.full(5, 90.0))
    assert causes(batchnorm.inspect(model, X, batch_size=64), "error") == [("first", "other data")]


def test_renorm_with_few_rows_is_no_alarm():
    model = fitted(renorm=True)
    assert batchnorm.inspect(model, X, batch_size=4).alarms() == []


def test_values_per_channel_count_ghost_batches():
    model = fitted(virtual_batch_size=8)
    report = batchnorm.inspect(model, X, batch_size=32)
    assert report.rows[0].values == 8
    assert ("first", "tiny groups") in causes(report)


def test_a_frozen_layer_that_fits_is_no_alarm():
    model = fitted()
    batchnorm.freeze(model)
    assert batchnorm.inspect(model, X, batch_size=64).healthy


def test_constant_inputs_dead_and_saturated_channels_are_told():
    model = fitted()
    second = model.get_layer("second")
    gamma, beta = np.ones(7, np.float32), np.zeros(7, np.float32)
    gamma[1], beta[2] = 0, 9
    second.gamma.assign(gamma)
    second.beta.assign(beta)
    row = batchnorm.inspect(model, X, batch_size=64).rows[1]
    assert row.dead >= 1
    assert row.saturated == 1
    flat = np.tile(X[:1], (64, 1))
    assert ("first", "constant") in causes(batchnorm.inspect(model, flat, batch_size=64))


def test_values_that_are_not_finite_are_told_and_do_not_hide_the_rest():
    x = X.copy()
    x[3, 1] = np.inf
    report = batchnorm.inspect(fitted(), x, batch_size=32)
    assert ("first", "not finite") in causes(report)
    assert np.isfinite(report.rows[0].mean_distance)


def test_a_channel_without_a_finite_value_is_not_measured_by_zeros(tmp_path):
    """It was: as if its data had mean 0 and variance 0."""
    x = X.copy()
    x[:, 1] = np.nan
    model = keras.Sequential([keras.Input((5,)), BatchNormalization(name="first")])
    batchnorm.reestimate(model, X, batch_size=64)
    report = batchnorm.inspect(model, x, batch_size=64)
    assert causes(report) == [("first", "not finite")]
    row = report.rows[0]
    assert row.mean_distance < 1e-3
    assert row.dead == 0
    assert np.isnan(report.profiles[0].mean[1])
    nothing = batchnorm.inspect(model, np.full_like(X, np.nan), batch_size=64)
    assert causes(nothing) == [("first", "not finite")]
    assert nothing.to_dict()["rows"][0]["mean_distance"] is None
    nothing.save(tmp_path / "report.html")


def test_zero_debias_leaves_nothing_of_the_start_that_could_be_too_slow():
    model = keras.Sequential(
        [keras.Input((5,)), BatchNormalization(name="first", zero_debias="both")]
    )
    model(X, training=True)
    report = batchnorm.inspect(model, X + 300, batch_size=64)
    assert causes(report, "error") == [("first", "other data")]
    assert report.rows[0].needed == 1


def test_a_layer_that_is_never_called_is_a_note():
    class Half(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = BatchNormalization(name="used"), BatchNormalization(name="idle")

        def build(self, shape):
            self.used.build(shape)
            self.idle.build(shape)

        def call(self, x):
            return self.used(x)

    model = Half()
    model.build((None, 5))
    batchnorm.reestimate(model, X, batch_size=64)
    assert causes(batchnorm.inspect(model, X, batch_size=64)) == [("idle", "never called")]


def test_normalizing_with_the_batch_in_evaluation_is_a_note():
    report = batchnorm.inspect(fitted(statistics="batch"), X, batch_size=64)
    assert ("first", "batch at evaluation") in causes(report)


def test_refused_updates_are_a_note():
    model = fitted()
    bad = X.copy()
    bad[0, 0] = np.nan
    model.get_layer("first")(bad, training=True)
    assert ("first", "skipped") in causes(batchnorm.inspect(model, X, batch_size=64))


def test_the_path_and_why_it_is_not_fused_are_told():
    row = batchnorm.inspect(fitted(fused=False), X).rows[0]
    assert (row.path, row.why_not) == ("composite operations", "fused is False.")
    assert batchnorm.inspect(fitted(), X).rows[0].path == "fused kernels"


def test_json_holds_rows_and_diagnoses_without_nan(tmp_path):
    model = fitted()
    set_statistics(model.get_layer("first"), np.full(5, np.nan))
    report = batchnorm.inspect(model, X, batch_size=64)
    read = json.loads(report.save(tmp_path / "report.json").read_text())
    assert read == report.to_dict()
    assert [row["layer"] for row in read["rows"]] == ["first", "second"]
    assert read["diagnoses"][0]["cause"] == "poisoned"
    assert read["rows"][0]["mean_distance"] is None
    assert not read["healthy"]


def test_the_table_has_a_row_and_a_verdict_for_each_layer():
    from rich.console import Console

    model = fitted()
    set_statistics(model.get_layer("first"), np.full(5, np.nan))
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(batchnorm.inspect(model, X, batch_size=64))
    text = console.export_text()
    assert "first" in text
    assert "poisoned" in text
    assert "fits" in text
    assert "batchnorm.repair(model, training_data)" in text


@pytest.mark.parametrize(
    ("message", "data"),
    [("inspect: data must hold at least one row; got none.", X[:0])],
)
def test_no_rows_are_refused(message, data):
    with pytest.raises(ValueError, match="at least one row") as raised:
        batchnorm.inspect(fitted(), data)
    assert str(raised.value) == message


def test_a_report_has_two_kinds_of_file(tmp_path):
    with pytest.raises(ValueError, match="path") as raised:
        batchnorm.inspect(fitted(), X).save(tmp_path / "report.pdf")
    assert str(raised.value) == "inspect: path must end in .html or .json; got 'report.pdf'."


def test_torch_modules_are_inspected():
    import torch

    module = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    report = batchnorm.inspect(module, X)
    assert causes(report, "error") == [("0", "never updated")]
    assert report.rows[0].path == "torch's own kernel"
    module[0].eval()
    assert causes(batchnorm.inspect(module, X), "error") == [("0", "frozen")]
