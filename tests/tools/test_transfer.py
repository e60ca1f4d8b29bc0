"""Batch normalization goes from one framework to another and computes the same there."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import linen, nnx

import batchnorm
import batchnorm.flax
import batchnorm.flax.linen
import batchnorm.torch
from transfers_of import CHANNELS, Nnx, X, linen_model, numbers_of, torch_model

RENORM = {
    "renorm": True,
    "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0},
    "virtual_batch_size": 8,
    "zero_debias": "both",
}


def options_of_torch(norm: Any) -> list[Any]:
    return [norm.momentum, norm.eps, norm.renorm, norm.virtual_batch_size, norm.zero_debias]


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({}, {}),
        ({"momentum": 0.03, "eps": 1e-3}, {}),
        ({"activation": "relu", "statistics": "moving", "update_statistics": True}, {}),
        ({**RENORM, "renorm_momentum": 0.2}, {**RENORM, "virtual_batch_size": 4}),
    ],
    ids=str,
)
def test_from_torch_over_nnx_and_back_everything_is_the_same(options, other):
    first = torch_model(batchnorm.torch.BatchNorm1d, **options)
    between = Nnx(**other)
    last = torch_model(batchnorm.torch.BatchNorm1d, **other)
    for module in (last[0], last[3]):
        module.reset_running_stats()
    for done in (
        batchnorm.transfer(first, between, X),
        batchnorm.transfer(between, last, X),
    ):
        assert max(done.differences) <= 1e-6
    assert options_of_torch(last[0]) == options_of_torch(first[0])
    assert (last[3].activation, last[3].statistics) == (first[3].activation, first[3].statistics)
    was, now = numbers_of(first), numbers_of(last)
    assert was.keys() == now.keys()
    for name, value in was.items():
        if not name.endswith("num_batches_tracked"):  # a plain module of flax counts nothing
            np.testing.assert_array_equal(now[name], value, err_msg=name)


def test_an_average_of_everything_goes_on_from_its_count():
    options = {"momentum": None}
    first, between = torch_model(batchnorm.torch.BatchNorm1d, **options), Nnx(momentum=None)
    done = batchnorm.transfer(first, between, X)
    assert max(done.differences) <= 1e-6
    assert int(between.after.num_updates[...]) == 9


def test_linen_gets_new_variables_and_the_old_ones_stay():
    options = {"momentum": 0.9, "unbiased_moving_variance": True}
    model = linen_model(**options)
    before = jax.tree.map(np.array, model[1])
    first, last = torch_model(), torch_model()
    into = batchnorm.transfer(first, model, X)
    jax.tree.map(np.testing.assert_array_equal, model[1], before)
    np.testing.assert_array_equal(
        into.variables["batch_stats"]["two"]["var"], first[3].running_var.numpy()
    )
    np.testing.assert_array_equal(
        into.variables["params"]["Dense_0"]["kernel"], before["params"]["Dense_0"]["kernel"]
    )
    back = batchnorm.transfer((model[0], into.variables, X), last, X)
    assert max(*into.differences, *back.differences) <= 1e-6
    module = linen.BatchNorm(momentum=0.9)
    alone = batchnorm.transfer(
        nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0)),
        (module, module.init(jax.random.key(0), X, use_running_average=True)),
        X,
    )
    assert max(alone.differences) <= 1e-6


def test_what_modes_remember_goes_into_variables_of_linen():
    first = torch_model(batchnorm.torch.BatchNorm1d, renorm=True, zero_debias="both")
    target = linen_model(
        renorm=True, zero_debias="both", unbiased_moving_variance=True, momentum=0.9
    )
    done = batchnorm.transfer(first, target, X)
    assert max(done.differences) <= 1e-6
    for name in ("renorm_mean", "biased_stddev", "local_step"):
        held = done.variables["batch_stats"]["two"][name]
        np.testing.assert_array_equal(held, getattr(first[3], name).numpy())
    back = torch_model(batchnorm.torch.BatchNorm1d, renorm=True, zero_debias="both")
    again = batchnorm.transfer((target[0], done.variables, X), back, X)
    assert max(again.differences) <= 1e-6


@pytest.mark.parametrize(
    "kinds", [("SyncBatchNorm", "BatchNorm2d"), ("BatchNorm2d", "SyncBatchNorm")]
)
@pytest.mark.parametrize("package", [torch.nn, batchnorm.torch])
def test_synchronized_modules_give_and_take(kinds, package):
    images = np.random.default_rng(1).normal(0, 1, (8, 5, 4, 6)).astype(np.float32)
    first, second = (getattr(package, kind)(5) for kind in kinds)
    with torch.no_grad():
        first(torch.as_tensor(images))
    assert max(batchnorm.transfer(first, second, images).differences) == 0
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("values", [None, 64, math.inf])
def test_the_variance_is_converted_by_the_number_of_values(values):
    """Kernels of 4 by 6 positions and 8 rows: 192 values, which data shows."""
    images = np.random.default_rng(1).normal(0, 1, (16, 5, 4, 6)).astype(np.float32)
    first = torch.nn.BatchNorm2d(5)
    first.running_var.copy_(torch.arange(1.0, 6.0))
    second = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    done = batchnorm.transfer(first, second, images, values=values, batch_size=8)
    count = {None: 192, 64: 64, math.inf: 1e30}[values]
    expected = first.running_var.double().numpy() * (count - 1) / count
    np.testing.assert_allclose(second.var[...], expected, rtol=1e-6)
    said = () if values == math.inf else (f"variance times {(count - 1) / count:.6g}",)
    assert done.layers[0].options == (*said, "momentum=0.9")
    back = torch.nn.BatchNorm2d(5)
    batchnorm.transfer(second, back, values=count)
    np.testing.assert_allclose(back.running_var, first.running_var, rtol=1e-6)


def test_with_the_numbers_kept_evaluation_is_the_same_and_training_all_but():
    done = batchnorm.transfer(torch_model(), Nnx(nnx.BatchNorm), X, values=math.inf)
    assert done.differences.evaluation <= 1e-6
    assert 1e-6 < done.differences.ten < 0.02


def test_a_proof_leaves_both_models_as_they_are_but_for_what_was_transferred():
    first, second = torch_model().train(), torch_model().eval()
    first[0].weight.requires_grad_(False)
    before = numbers_of(first)
    batchnorm.transfer(first, second, X)
    for name, value in numbers_of(second).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
        np.testing.assert_array_equal(numbers_of(first)[name], before[name], err_msg=name)
    assert all(one.training for one in first.modules())
    assert not any(one.training for one in second.modules())
    assert all(one.grad is None for one in second.parameters())


def test_a_proof_shows_a_layer_that_does_something_else():
    class Other(torch.nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) * (1.01 if self.training else 1)

    done = batchnorm.transfer(torch_model(Other), torch_model(), X)
    assert done.differences.evaluation == 0
    assert done.differences.one > 1e-3


def test_layers_of_another_rank_are_proven_on_rows():
    images = np.random.default_rng(1).normal(0, 1, (16, 5, 4, 6)).astype(np.float32)
    done = batchnorm.transfer(torch.nn.BatchNorm2d(5), torch.nn.BatchNorm1d(5), images)
    assert max(done.differences) <= 1e-6


def test_names_that_both_models_have_are_matched_and_a_mapping_says_the_rest():
    model, other = torch_model(), torch_model()
    turned = torch.nn.Sequential()
    for name in ("3", "0"):
        turned.add_module(name, other[int(name)])
    done = batchnorm.transfer(model, turned)
    assert [(one.source, one.target) for one in done.layers] == [("0", "0"), ("3", "3")]
    single = torch.nn.BatchNorm1d(7)
    done = batchnorm.transfer(model, single, mapping={"3": "BatchNorm1d"})
    np.testing.assert_array_equal(single.running_mean, model[3].running_mean)
    assert str(done) == "3: 7 channels went into BatchNorm1d."


def test_what_is_frozen_stays_frozen():
    first, second = torch_model(), torch_model()
    batchnorm.freeze(first, "statistics", "0")
    batchnorm.freeze(first, "parameters", "3")
    done = batchnorm.transfer(first, second, X)
    assert max(done.differences) == 0
    second.train()
    assert [second[0].training, second[3].training] == [False, True]
    assert [second[0].weight.requires_grad, second[3].weight.requires_grad] == [True, False]
    batchnorm.transfer(torch_model(), second)
    assert second[3].weight.requires_grad
    assert second.train()[0].training


def test_a_layer_that_the_data_does_not_reach_is_told():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)

        def forward(self, x):
            return self.a(x)

    done = batchnorm.transfer(Half(), Half(), X)
    assert done.never_called == ("b",)
    assert done.layers[1].differences is None
    assert str(done).splitlines()[-1] == (
        "b: the data did not reach it; it was transferred, and nothing is proven of it."
    )


def test_an_error_in_the_proof_leaves_the_target_as_it_was():
    class Broken(torch.nn.BatchNorm1d):
        def forward(self, x):
            raise RuntimeError("out of order")

    model = torch_model(Broken, momentum=0.5)
    before = numbers_of(model)
    with pytest.raises(RuntimeError, match="out of order"):
        batchnorm.transfer(torch_model(), model, X)
    assert model[0].momentum == 0.5
    for name, value in numbers_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_result_is_plain_values():
    done = batchnorm.transfer(torch_model(), torch_model(momentum=0.2), X)
    row = done.to_dict()["layers"][0]
    assert row["channels"] == CHANNELS[0]
    assert row["options"] == ["momentum=0.1"]
    assert row["differences"] == [0, 0, 0]
    assert str(done).splitlines()[0] == (
        "0: 5 channels went into 0; set momentum=0.1. Outputs differ by 0.0e+00 in evaluation, "
        "0.0e+00 after one training step, 0.0e+00 after ten."
    )
