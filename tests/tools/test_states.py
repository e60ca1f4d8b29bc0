"""Items 26 to 29 of what outsiders met, on modules of nnx and on ours of PyTorch: siblings of
test_gallery.py and test_remedies.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import batchnorm
import batchnorm.flax
import batchnorm.torch
from gallery import GALLERY, shuffled

KINDS = {"flax": nnx.BatchNorm, "ours": batchnorm.flax.BatchNorm}
both = pytest.mark.parametrize("kind", KINDS)


class Net(nnx.Module):
    """The gallery's network."""

    def __init__(self, kind: str, **options: Any) -> None:
        rngs = nnx.Rngs(3)
        sizes = (64, 32, 32)
        self.linears = nnx.List([nnx.Linear(size, 32, rngs=rngs) for size in sizes])
        made = [KINDS[kind](32, rngs=rngs, **{"momentum": 0.9, **options}) for _ in sizes]
        self.norm1, self.norm2, self.norm3 = made

    def __call__(self, x: Any) -> Any:
        for linear, norm in zip(self.linears, (self.norm1, self.norm2, self.norm3), strict=True):
            x = jax.nn.relu(norm(linear(x)))
        return x


def learn(model: Net, steps: int = 60) -> Net:
    model.train()
    step = nnx.jit(lambda model, x: model(x))
    batches = shuffled()
    for index in range(steps):
        step(model, jnp.asarray(batches[index % len(batches)]))
    return model


def first_alarm(model: Any) -> tuple[str, str]:
    alarm = batchnorm.inspect(model, shuffled()).alarms()[0]
    return alarm.layer, alarm.cause


@both
def test_an_nnx_model_gets_the_same_report_in_train_and_in_eval_mode(kind):
    model = learn(Net(kind))
    model.norm1.var[...] = model.norm1.var[...] * 25
    reports = []
    for mode in (model.train, model.eval, model.norm2.train):  # and a part of it in another mode
        mode()
        reports.append(batchnorm.inspect(model, shuffled()).to_dict())
    assert reports[0] == reports[1] == reports[2]
    alarms = reports[0]["diagnoses"]
    assert alarms[0]["layer"] == "norm1"
    assert reports[0]["rows"][0]["drift"] > 0


@pytest.mark.parametrize("name", ["poisoned", "other data", "updates never ran", "healthy"])
def test_converted_modules_get_the_same_report_in_train_and_in_eval_mode(name):
    sick = GALLERY[name]
    model, data = sick.make("torch")
    batchnorm.torch.convert(model)
    reports = [batchnorm.inspect(model.train(mode), data) for mode in (True, False)]
    assert reports[0].to_dict() == reports[1].to_dict()
    alarms = [(one.layer, one.cause) for one in reports[0].alarms()]
    assert alarms[:1] == ([] if sick.cause is None else [(sick.layer, sick.cause)])


@both
def test_momentum_one_is_frozen_and_the_remedy_ends_it(kind):
    model = learn(Net(kind, momentum=1.0), 4)
    alarm = batchnorm.inspect(model, shuffled()).alarms()[0]
    assert (alarm.layer, alarm.cause) == ("norm1", "frozen")
    assert "set momentum=0.99 on the module" in alarm.remedy
    assert "leaves the moving ones alone" in batchnorm.explain(model.norm1)
    for norm in (model.norm1, model.norm2, model.norm3):
        norm.momentum = 0.9
    assert batchnorm.inspect(learn(model), shuffled()).healthy


def test_momentum_zero_of_our_module_is_told_in_torchs_convention():
    torch.manual_seed(0)
    norm = batchnorm.torch.BatchNorm1d(32, momentum=0.0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), norm)
    with torch.no_grad():
        for batch in shuffled():
            model(torch.as_tensor(batch))
    alarm = batchnorm.inspect(model, shuffled()).alarms()[0]
    assert alarm.cause == "frozen"
    assert "set momentum=0.1 on the module" in alarm.remedy
    norm.momentum = 0.1
    with torch.no_grad():
        for batch in shuffled() * 6:
            model(torch.as_tensor(batch))
    assert batchnorm.inspect(model, shuffled()).healthy


@both
def test_too_slow_is_said_in_flaxs_convention(kind):
    alarm = batchnorm.inspect(learn(Net(kind, momentum=0.999), 30), shuffled()).alarms()[0]
    assert (alarm.layer, alarm.cause) == ("norm1", "too slow")
    assert "lower the momentum to" in alarm.remedy
    assert "at momentum 0.999" in alarm.words


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_was_trained_elsewhere_is_not_called_too_slow(count):
    """A module with modes counts its updates, in flax too."""
    model = Net("ours", momentum=None)
    batchnorm.reestimate(model, shuffled())
    for norm in (model.norm1, model.norm2, model.norm3):
        norm.num_updates[...] = jnp.asarray(count, jnp.int32)
    assert batchnorm.inspect(model, shuffled()).healthy
    other = [3 * images - 1 for images in shuffled()]
    alarm = batchnorm.inspect(model, other).alarms()[0]
    assert (alarm.layer, alarm.cause) == ("norm1", "other data")


@both
@pytest.mark.parametrize("scale", [1e-24, 0.0])
def test_channels_without_a_scale_do_not_make_batches_unlike(kind, scale):
    x = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    x[:, ::2] *= np.float32(scale)
    model = KINDS[kind](64, momentum=0.9, rngs=nnx.Rngs(0))
    for start in range(0, 640, 16):
        model(jnp.asarray(x[start % 128 : start % 128 + 16]), use_running_average=False)
    report = batchnorm.inspect(model, x, batch_size=16)
    assert "unlike batches" not in [one.cause for one in report.diagnoses]
    assert report.rows[0].between < 0.2
