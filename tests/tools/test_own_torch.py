"""Modules of batchnorm.torch under the tools: one more kind of layer behind the same seam."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import batchnorm
from batchnorm.torch import BatchNorm1d, convert

X = np.random.default_rng(0).normal(5, 2, (64, 3)).astype(np.float32)

MODES = {
    "plain": {},
    "renorm": {"renorm": True},
    "ghost": {"virtual_batch_size": 16},
    "debiased": {"zero_debias": "both"},
    "renorm, debiased": {"renorm": True, "zero_debias": "both"},
}


def module(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(BatchNorm1d(3, **options), torch.nn.ReLU())


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_re_estimates_and_repairs_agree_in_everything_that_is_remembered(options):
    model = module(**options)
    for buffer in model[0].buffers():
        if buffer.is_floating_point():
            buffer[1] = np.nan
    assert batchnorm.repair(model, X).still == ()
    mean, variance = X.mean(0, dtype=np.float64), X.var(0, ddof=1, dtype=np.float64)
    wanted = {
        "running_mean": mean,
        "running_var": variance,
        "renorm_mean": mean,
        "renorm_stddev": np.sqrt(variance + 1e-5),
        "biased_mean": mean,
        "biased_variance": variance,
        "biased_stddev": np.sqrt(variance + 1e-5),
    }
    for name, buffer in model[0].named_buffers():
        if name in wanted:
            np.testing.assert_allclose(buffer, wanted[name], rtol=1e-5)
    assert batchnorm.inspect(model, X, batch_size=64).alarms("error") == []


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
@pytest.mark.parametrize("mode", [True, False])
def test_drift_is_that_of_the_modules_own_training(options, mode):
    """As the module itself puts out in training, in float64 by hand: ghosts and renorm too."""
    model = module(**options)
    batchnorm.reestimate(model, X)
    model[0].running_mean += 1.0
    norm = copy.deepcopy(model[0])
    with torch.no_grad():
        trained = norm.train()(torch.as_tensor(X)).double()
        evaluated = model[0].eval()(torch.as_tensor(X)).double()
    wanted = ((trained - evaluated) ** 2).sum() / ((trained - trained.mean(0)) ** 2).sum()
    row = batchnorm.inspect(model.train(mode), X, batch_size=64).rows[0]
    np.testing.assert_allclose(row.drift, wanted.sqrt(), rtol=1e-4)
    assert row.path == "fused kernels"


def test_frozen_modules_hold_by_options_and_come_back():
    model = module(statistics="batch")
    batchnorm.freeze(model)
    frozen = copy.deepcopy(model)
    before = frozen[0].running_mean.clone()
    frozen.train()(torch.as_tensor(X))
    torch.testing.assert_close(frozen[0].running_mean, before)
    assert (model[0].statistics, model[0].update_statistics) == ("moving", False)
    batchnorm.unfreeze(model)
    assert (model[0].statistics, model[0].update_statistics) == ("batch", "auto")
    with batchnorm.frozen(model):
        assert model[0].statistics == "moving"
    assert model[0].statistics == "batch"


def test_converted_modules_are_known_and_thawed():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    batchnorm.freeze(model)
    batchnorm.unfreeze(model)
    convert(model, renorm=True)
    assert batchnorm.explain(model).startswith(
        "0: It is in train mode: it normalizes with the batch's own statistics, corrected by "
        "renorm, and updates the moving ones. Gamma and beta are trained. It runs on fused kernels."
    )
    batchnorm.freeze(model, "statistics")
    assert batchnorm.explain(model[0]).startswith(
        "In train and eval mode alike it normalizes with the moving statistics and leaves them "
        "alone, because statistics='moving', update_statistics=False."
    )


def test_explain_prints_the_plan_of_the_last_call():
    model = module()
    assert "Plan(" not in batchnorm.explain(model)
    model(torch.as_tensor(X))
    assert "Its last call followed Plan(way='at once', batch=True, update=True, " in (
        batchnorm.explain(model)
    )


def test_masks_count_in_tools():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchNorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask=mask)

    mask = np.arange(64) < 40
    model = Masked()
    batchnorm.reestimate(model, (X, mask), batch_size=64)
    np.testing.assert_allclose(model.norm.running_mean, X[:40].mean(0), rtol=1e-5)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_our_modules_fold_with_their_activation(activation):
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 1), BatchNorm1d(4, activation=activation))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    folded = batchnorm.fold(model, np.repeat(X[:, :, None], 5, 2))
    assert folded.folding.refused == ()
    assert not any(isinstance(one, BatchNorm1d) for one in folded.modules())
    assert folded.folding.difference <= 1e-5


def test_inspect_says_what_a_conversion_would_drop_of_our_modes():
    model = module(renorm=True, virtual_batch_size=16)
    batchnorm.reestimate(model, X)
    (note,) = [one for one in batchnorm.inspect(model, X).diagnoses if one.severity == "note"]
    assert note.cause == "lost by conversion"
    assert note.words == (
        "torch.nn.SyncBatchNorm.convert_sync_batchnorm builds a module of its own class, without "
        "renorm=True, virtual_batch_size=16: use batchnorm.set_synchronized."
    )
