"""The gallery: of every sick model, the first diagnosis names the right layer and cause."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import batchnorm
from gallery import GALLERY
from tool_models import KINDS


@pytest.mark.keras
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GALLERY)
def test_the_first_diagnosis_names_the_layer_and_the_cause(name, kind):
    sick = GALLERY[name]
    model, data = sick.make(kind)
    report = batchnorm.inspect(model, data)
    alarms = [(one.layer, one.cause) for one in report.alarms()]
    assert alarms[:1] == ([] if sick.cause is None else [(sick.layer, sick.cause)])


@pytest.mark.parametrize("name", GALLERY)
def test_a_torch_module_gets_the_same_report_in_train_and_in_eval_mode(name):
    """In `train()`, evaluation was measured twice: no drift, and the layers behind were blamed."""
    sick = GALLERY[name]
    model, data = sick.make("torch")
    reports = [batchnorm.inspect(model.train(mode), data) for mode in (True, False)]
    alarms = [(one.layer, one.cause) for one in reports[0].alarms()]
    assert alarms[:1] == ([] if sick.cause is None else [(sick.layer, sick.cause)])
    assert reports[0].to_dict() == reports[1].to_dict()
    assert any(row.drift > 0 for row in reports[0].rows)


APPLICATIONS = ("ResNet50", "MobileNetV2", "EfficientNetB0")


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the large networks run on torch")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", APPLICATIONS)
def test_healthy_networks_raise_no_alarm_once_re_estimated(name, seed):
    keras.utils.set_random_seed(seed)
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=10)
    images = np.random.default_rng(seed).uniform(0, 255, (16, 64, 64, 3)).astype(np.float32)
    batchnorm.reestimate(model, images, batch_size=16)
    report = batchnorm.inspect(model, images, batch_size=16)
    assert report.alarms() == []
