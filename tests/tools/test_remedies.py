"""Every remedy that the inspector names, followed to the letter: the alarm is gone."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import torch

import batchnorm
from gallery import GALLERY, learn, network, shuffled
from tool_models import KINDS

OURS = pytest.param("ours", marks=pytest.mark.keras)


def norms(model):
    if isinstance(model, keras.Model):
        return [model.get_layer(f"norm{index}") for index in (1, 2, 3)]
    return [getattr(model, f"norm{index}") for index in (1, 2, 3)]


def repair(model, data, remedy):
    batchnorm.repair(model, data)


def reestimate(model, data, remedy):
    batchnorm.reestimate(model, data)


def train(model, data, remedy):
    learn(model, data, 60)


def unfreeze(model, data, remedy):
    batchnorm.unfreeze(model)
    learn(model, data, 60)


def other_momentum(model, data, remedy):
    """As if it had been trained so: the same number of updates from the start."""
    kind = "torch" if hasattr(model, "norm1") else type(norms(model)[0])
    (said,) = re.findall(r"(?:lower|raise) the momentum to ([0-9.]+)", remedy)
    theirs = 1 - float(said) if kind == "torch" else float(said)
    kinds = {cls: name for name, cls in KINDS.items()}
    fresh = learn(network(kinds.get(kind, kind), theirs), data, 30)
    for norm, new in zip(norms(model), norms(fresh), strict=True):
        if kind == "torch":
            norm.load_state_dict(new.state_dict())
        else:
            for variable, value in zip(norm.variables, new.variables, strict=True):
                variable.assign(value.value)


# Keras' own layer and ours in turn: each alarm with one of them
CAUSES = [
    ("poisoned", "batchnorm.repair(model, training_data)", repair),
    ("frozen by mistake", "batchnorm.unfreeze(model)", unfreeze),
    ("frozen by mistake", "batchnorm.reestimate(model, training_data)", reestimate),
    ("updates never ran", "then train", train),
    ("updates never ran", "batchnorm.reestimate(model, training_data)", reestimate),
    ("momentum too slow", "the momentum to", other_momentum),
    ("momentum too slow", "batchnorm.reestimate(model, training_data)", reestimate),
    ("batches not i.i.d.", "batchnorm.reestimate(model, training_data)", reestimate),
    ("other data", "batchnorm.reestimate(model, training_data)", reestimate),
]


FOLLOWED = [(*one, "torch") for one in CAUSES]
FOLLOWED += [
    pytest.param(*one, list(KINDS)[index % 2], marks=pytest.mark.keras)
    for index, one in enumerate(CAUSES)
]


@pytest.mark.parametrize(("name", "said", "follow", "kind"), FOLLOWED)
def test_a_remedy_that_is_followed_ends_the_alarm(name, said, follow, kind):
    model, data = GALLERY[name].make(kind)
    first = batchnorm.inspect(model, data).alarms()[0]
    assert said in first.remedy
    follow(model, data, first.remedy)
    assert batchnorm.inspect(model, data).alarms("error") == []


@pytest.mark.parametrize("kind", [OURS, "torch"])
def test_shuffled_batches_and_larger_ones_end_their_alarms(kind):
    model, _ = GALLERY["batches not i.i.d."].make(kind)
    assert batchnorm.inspect(learn(model, shuffled(), 60), shuffled()).healthy
    model, _ = GALLERY["tiny batches"].make(kind)
    assert batchnorm.inspect(learn(model, shuffled(), 290), shuffled()).healthy


def sets(name, value):
    return lambda norm: setattr(norm, name, value)


HELD = [
    ("torch", {"momentum": 0.0}, "set momentum=0.1 on the module", sets("momentum", 0.1)),
    pytest.param(
        *("keras", {"momentum": 1.0}, "set momentum=0.9 on the layer", sets("momentum", 0.9)),
        marks=pytest.mark.keras,
    ),
    pytest.param(
        *("ours", {"momentum": 1.0}, "set momentum=0.9 on the layer", sets("momentum", 0.9)),
        marks=pytest.mark.keras,
    ),
    pytest.param(
        *("ours", {"trainable": False}, "set trainable=True on the layer", sets("trainable", True)),
        marks=pytest.mark.keras,
    ),
]


@pytest.mark.parametrize(("kind", "options", "said", "follow"), HELD)
def test_statistics_that_options_hold_are_told_with_what_ends_it(kind, options, said, follow):
    """`unfreeze` was advised, which changes none of these."""
    model = network(kind)
    for norm in norms(model):
        for name, value in options.items():
            setattr(norm, name, value)
    learn(model, shuffled(), 60)
    first = batchnorm.inspect(model, shuffled()).alarms()[0]
    assert (first.layer, first.cause) == ("norm1", "frozen")
    assert said in first.remedy
    for norm in norms(model):
        follow(norm)
    learn(model, shuffled(), 60)
    assert batchnorm.inspect(model, shuffled()).healthy


def test_a_module_in_eval_mode_inside_a_training_model_is_told_to_train():
    model = network("torch")
    for _ in range(2):
        model.train()
        model.norm1.eval()
    first = batchnorm.inspect(model, shuffled()).alarms()[0]
    assert (first.layer, first.cause) == ("norm1", "frozen")
    assert "Let it learn, if it was not meant: model.train();" in first.remedy
    assert batchnorm.inspect(learn(model, shuffled(), 60), shuffled()).healthy


def test_explain_knows_momentum_zero_of_torch():
    """It said that the moving statistics are updated."""
    norm = torch.nn.BatchNorm1d(3, momentum=0.0)
    assert batchnorm.explain(norm).startswith(
        "It is in train mode: it normalizes with the batch's own statistics and leaves the moving "
        "ones alone, because momentum=0.0."
    )


@pytest.mark.parametrize(
    ("momentum", "steps", "words", "remedy"),
    [
        (0.001, 30, "at momentum 0.001, which needs 4603 updates.", "raise the momentum to 0.15;"),
        (0.1, 12, "at momentum 0.1, which needs 44 updates.", "raise the momentum to 0.32;"),
    ],
)
def test_too_slow_is_said_in_torchs_convention(momentum, steps, words, remedy):
    """It advised to lower the momentum, which must be raised."""
    model = network("torch", momentum=1 - momentum)
    first = batchnorm.inspect(learn(model, shuffled(), steps), shuffled()).alarms()[0]
    assert first.cause == "too slow"
    assert first.words.endswith(words)
    assert remedy in first.remedy


def trained_elsewhere(count, kind="torch"):
    """Statistics that fit, and a counter that says nothing of them."""
    model = network(kind)
    batchnorm.reestimate(model, shuffled())
    for norm in norms(model):
        if kind == "torch":
            norm.num_batches_tracked.fill_(count)
        else:
            norm.num_updates.assign(count)
    return model


@pytest.mark.parametrize(
    ("count", "kind"),
    [(0, "torch"), (1, "torch"), (2, "torch"), pytest.param(1, "ours", marks=pytest.mark.keras)],
)
def test_what_was_trained_elsewhere_is_not_called_too_slow(count, kind):
    """A counter of 1 beside trained statistics: "After 1 updates", "too slow"."""
    model = trained_elsewhere(count, kind)
    other = [3 * images - 1 for images in shuffled()]
    report = batchnorm.inspect(model, other)
    assert (report.alarms()[0].layer, report.alarms()[0].cause) == ("norm1", "other data")
    assert "a file, a re-estimate or an initializer made them" in report.alarms()[0].words
    assert "enough updates" not in str(report)
    assert [row.updates for row in report.rows] == [None] * 3
    assert batchnorm.inspect(model, shuffled()).healthy


def test_the_counter_is_told_in_words_that_are_true():
    assert batchnorm.explain(trained_elsewhere(0).norm1).endswith(
        "No update of its statistics was counted: they were put there."
    )
    assert batchnorm.explain(trained_elsewhere(1).norm1).endswith(
        "It has counted 1 update of its statistics."
    )


@pytest.mark.parametrize(
    ("scale", "kind"),
    [
        (1e-24, "torch"),
        (1e-18, "torch"),
        (0.0, "torch"),
        pytest.param(1e-24, "ours", marks=pytest.mark.keras),
        pytest.param(1e-20, "keras", marks=pytest.mark.keras),
    ],
)
def test_channels_without_a_scale_do_not_make_batches_unlike(scale, kind):
    """Squares underflow in them, and what varies within a batch was exactly 0."""
    random = np.random.default_rng(0)
    x = random.standard_normal((128, 64)).astype(np.float32)
    x[:, ::2] *= np.float32(scale)
    model = network(kind)
    if kind == "torch":
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(64))
        with torch.no_grad():
            for start in range(0, 640, 16):
                model(torch.as_tensor(x[start % 128 : start % 128 + 16]))
    else:
        model = keras.Sequential([keras.Input((64,)), KINDS[kind](momentum=0.9)])
        for start in range(0, 640, 16):
            model(x[start % 128 : start % 128 + 16], training=True)
    report = batchnorm.inspect(model, x, batch_size=16)
    assert "unlike batches" not in [one.cause for one in report.diagnoses]
    assert report.rows[0].between < 0.2
