"""Frozen PyTorch modules: their class stays, and whatever else takes hold of them finds them so."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import batchnorm

X = torch.as_tensor(np.random.default_rng(0).normal(5, 2, (8, 3, 6)).astype(np.float32))


def module(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(4, **options)
    return torch.nn.Sequential(torch.nn.Conv1d(3, 4, 1), norm, torch.nn.ReLU())


def moves(model, norm=None) -> bool:
    """Whether a call in train mode moves the statistics."""
    norm = model[1] if norm is None else norm
    before = norm.running_mean.clone()
    model.train()
    model(X)
    return not torch.equal(norm.running_mean, before)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_frozen_module_keeps_its_class_and_its_state_dict():
    model = module()
    names = list(model.state_dict())
    batchnorm.freeze(model)
    assert type(model[1]) is torch.nn.BatchNorm1d
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_frozen_and_unfreeze_by_themselves(how):
    model = module()
    batchnorm.freeze(model)
    other = torch.nn.Sequential(*(how(one) for one in model))
    assert not moves(other)
    if how is not copy.copy:
        batchnorm.unfreeze(other)
        assert moves(other)
        assert not moves(model)


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_parametrizations_and_frozen_leave_each_other_alone(when):
    """Replacing the class destroyed the module."""
    model = module()

    def register():
        parametrize.register_parametrization(model[1], "weight", Doubled())

    if when == "before":
        register()
    with batchnorm.frozen(model):
        if when == "inside":
            register()
        assert not moves(model)
        assert not any(one.requires_grad for one in model[1].parameters())
    if when == "after":
        register()
    torch.testing.assert_close(model[1].weight, torch.full((4,), 2.0))
    assert moves(model)
    assert all(one.requires_grad for one in model[1].parameters())
    parametrize.remove_parametrizations(model[1], "weight")
    assert type(model[1]) is torch.nn.BatchNorm1d
    assert moves(model)


def test_a_parametrization_that_is_removed_inside_leaves_the_module_frozen():
    model = module()
    parametrizations.orthogonal(model[0])
    parametrize.register_parametrization(model[1], "bias", Doubled())
    with batchnorm.frozen(model, "statistics"):
        parametrize.remove_parametrizations(model[1], "bias")
        assert not moves(model)
    assert moves(model)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_frozen_module_does_not_move_from_a_file_either():
    """Its statistics moved as soon as somebody called `train()` on it."""
    model = module()
    batchnorm.freeze(model)
    scripted = torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    for one in (scripted, torch.jit.load(file)):
        assert not moves(one, getattr(one, "1"))
    traced = torch.jit.trace(model, X)
    assert not moves(traced, getattr(traced, "1"))


def test_fusion_finds_a_frozen_module():
    from torch.fx.experimental.optimization import fuse

    model = module().eval()
    batchnorm.freeze(model)
    fused = fuse(model)
    assert not any(isinstance(one, torch.nn.BatchNorm1d) for one in fused.modules())
    torch.testing.assert_close(fused(X), model(X))


def test_a_compiled_and_an_exported_frozen_module_do_not_move():
    model = module()
    batchnorm.freeze(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert not moves(compiled, model[1])
    exported = torch.export.export(model.train(), (X,))
    torch.testing.assert_close(exported.module()(X), model(X))


def test_what_is_unfrozen_is_exactly_what_it_was():
    model = module()
    model[1].bias.requires_grad_(False)
    before = set(vars(model[1]))
    for _ in range(2):
        batchnorm.freeze(model)
    batchnorm.unfreeze(model)
    assert (model[1].weight.requires_grad, model[1].bias.requires_grad) == (True, False)
    assert set(vars(model[1])) == before
    assert not model[1]._forward_pre_hooks
    assert model[1].training


def test_a_module_that_was_in_eval_mode_by_itself_comes_back_so():
    model = module()
    model[1].eval()
    batchnorm.freeze(model)
    batchnorm.unfreeze(model)
    assert not model[1].training
    batchnorm.freeze(model.train())
    batchnorm.unfreeze(model.eval())
    assert not model[1].training


def test_what_was_never_frozen_learns_after_unfreeze():
    model = module()
    model[1].eval().requires_grad_(False)
    batchnorm.unfreeze(model)
    assert moves(model)
    assert model[1].weight.requires_grad


def test_parts_are_frozen_and_unfrozen_one_by_one():
    model = module()
    batchnorm.freeze(model, "statistics")
    batchnorm.freeze(model, "parameters")
    batchnorm.unfreeze(model, "statistics")
    assert moves(model)
    assert not model[1].weight.requires_grad
    batchnorm.unfreeze(model, "parameters")
    assert model[1].weight.requires_grad


def test_a_module_that_is_unfrozen_inside_is_frozen_again_behind():
    model = module()
    batchnorm.freeze(model)
    with batchnorm.frozen(model):
        batchnorm.unfreeze(model)
        assert moves(model)
    assert not moves(model)
    batchnorm.unfreeze(model)
    assert moves(model)


def test_a_frozen_module_without_parameters_and_a_replica_stay():
    model = module(affine=False)
    batchnorm.freeze(model)
    assert not moves(model)
    assert not model[1]._replicate_for_data_parallel().train().training


def test_inspect_says_what_a_conversion_would_drop():
    class Scaled(torch.nn.BatchNorm1d):
        """Does more than its parent."""

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), Scaled(3), torch.nn.BatchNorm1d(3))
    parametrize.register_parametrization(model[2], "weight", Doubled())
    batchnorm.freeze(model, pattern="0")
    batchnorm.reestimate(model, X, layer_by_layer=True)
    lost = "torch.nn.SyncBatchNorm.convert_sync_batchnorm builds a module"
    assert [(one.layer, one.cause, one.words) for one in batchnorm.inspect(model, X).diagnoses] == [
        ("0", "lost by conversion", f"{lost} that is not frozen: convert first, then freeze."),
        ("1", "lost by conversion", f"{lost} of its own class, without what Scaled adds."),
        (
            "2",
            "lost by conversion",
            f"{lost} of its own class, without what ParametrizedBatchNorm1d adds.",
        ),
    ]
