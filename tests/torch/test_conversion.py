"""Networks that are converted in place and back."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils import parametrize
from torch.testing import assert_close

import batchnorm.torch as ours
import networks

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet_with_act() -> torch.nn.Module:
    """timm's layers with ReLU inside."""
    return networks.timm().create_model("regnetx_002", num_classes=5)


def efficientnet() -> torch.nn.Module:
    """timm's layers with ReLU6 inside."""
    return networks.timm().create_model("efficientnet_lite0", num_classes=5)


def torchvision_resnet() -> torch.nn.Module:
    models = networks.torchvision().models
    block = models.resnet.BasicBlock
    return models.resnet.ResNet(block, [1, 1, 1, 1], num_classes=5, width_per_group=64)


def mobilenet() -> torch.nn.Module:
    return networks.torchvision().models.mobilenet_v3_small(num_classes=5, dropout=0.0)


NETWORKS = [resnet_with_act, efficientnet, torchvision_resnet, mobilenet]


def made(network: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = network().double()  # so few values at the end of a network make float32 chaos
    for module in model.modules():  # dropout draws other numbers in every copy
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    return model


def optimized(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        y = model(X.double() + seed)
        torch.nn.functional.cross_entropy(y, torch.arange(len(X))).backward()
        optimizer.step()


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_trains_converted_as_it_does_untouched_and_comes_back(network) -> None:
    model = made(network)
    untouched = copy.deepcopy(model)
    before = [(name, type(one), id(one)) for name, one in model.named_modules()]
    parameters = [id(one) for one in model.parameters()]
    keys = list(model.state_dict())
    optimizer, other = optimized(model), optimized(untouched)
    train(model, optimizer, 1)
    train(untouched, other, 1)

    result = ours.convert(model)
    norms = [
        one for one in model.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert len(result.converted) == len(norms) > 0
    assert not result.skipped
    assert all(type(one).__module__.startswith("batchnorm.torch") for one in norms)
    assert [id(one) for one in model.parameters()] == parameters
    assert list(model.state_dict()) == keys
    train(model, optimizer, 2)
    train(untouched, other, 2)

    assert not ours.revert(model).skipped
    assert [(name, type(one), id(one)) for name, one in model.named_modules()] == before
    assert vars(model).keys() == vars(untouched).keys()
    wanted = untouched.state_dict()
    assert list(model.state_dict()) == list(wanted) == keys
    for name, value in model.state_dict().items():
        assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    for one, two in zip(model.modules(), untouched.modules(), strict=True):
        assert vars(one).keys() == vars(two).keys()
    assert [id(one) for group in optimizer.param_groups for one in group["params"]] == parameters


def test_relu_inside_a_layer_of_timm_runs_in_our_kernel() -> None:
    model = made(resnet_with_act)
    ours.convert(model)
    assert model.stem.bn.activation == "relu"


def test_other_activations_run_behind_our_kernel() -> None:
    norm = networks.timm().layers.BatchNormAct2d(3, act_layer=torch.nn.SiLU)
    untouched = copy.deepcopy(norm)
    ours.convert(norm)
    assert norm.activation is None
    assert_close(norm(X), untouched(X))
    assert list(norm.state_dict()) == list(untouched.state_dict())


def test_a_hooked_activation_is_still_called() -> None:
    norm, seen = networks.timm().layers.BatchNormAct2d(3), []
    norm.act.register_forward_hook(lambda *_: seen.append(1))
    ours.convert(norm)
    norm(X)
    assert seen == [1]


FROZEN = {
    "torchvision": lambda: networks.torchvision().ops.misc.FrozenBatchNorm2d(3),
    "timm": lambda: networks.timm().layers.norm_act.FrozenBatchNormAct2d(3),
    "detectron2": lambda: networks.FrozenBatchNorm2d(3),
}


def frozen(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = FROZEN[kind]()
    for buffer in layer.buffers():
        torch.nn.init.uniform_(buffer, 0.5, 2)
    return layer


@pytest.mark.parametrize("kind", FROZEN)
def test_a_frozen_layer_stays_frozen_and_comes_back(kind) -> None:
    layer = frozen(kind)
    untouched = copy.deepcopy(layer)
    storages = [one.data_ptr() for one in layer.state_dict().values()]
    assert ours.convert(layer).converted == [type(untouched).__name__]
    assert isinstance(layer, ours.BatchNorm2d)
    assert not any(one.requires_grad for one in layer.parameters())
    layer.load_state_dict(layer.state_dict())
    assert_close(layer.train()(X), untouched(X))
    assert_close(layer.eval()(X), untouched(X))
    ours.revert(layer)
    assert type(layer) is type(untouched)
    assert vars(layer).keys() == vars(untouched).keys()
    assert_close(layer.state_dict(), untouched.state_dict(), rtol=0, atol=0)
    assert list(layer.state_dict()) == list(untouched.state_dict())
    assert [one.data_ptr() for one in layer.state_dict().values()] == storages
    assert_close(layer(X), untouched(X))


def test_a_frozen_layer_that_is_thawed_trains() -> None:
    layer = torch.nn.Sequential(frozen("detectron2"))
    ours.convert(layer, statistics="auto", update_statistics="auto")
    layer[0].weight.requires_grad_(True)
    layer(X).sum().backward()
    assert layer[0].weight.grad is not None
    assert int(layer[0].num_batches_tracked) == 1


def test_torchrls_layer_goes_on_at_its_step_and_comes_back() -> None:
    layer = networks.BatchRenorm1d(3, warmup_steps=3).double()
    layer(torch.randn(7, 3).double())
    untouched = copy.deepcopy(layer)
    keys = list(layer.state_dict())
    assert ours.convert(layer).converted == ["BatchRenorm1d"]
    assert isinstance(layer, ours.BatchNorm1d)
    assert sorted(layer.state_dict()) == sorted(keys)
    for seed in range(4):
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).double() * 2 + seed
        assert_close(layer(x), untouched(x))
    ours.revert(layer)
    assert vars(layer).keys() == vars(untouched).keys()
    assert_close(layer.state_dict(), untouched.state_dict())


class Own(torch.nn.BatchNorm2d):
    """A user's subclass."""


class WithoutEpsilon(torch.nn.Module):
    """A frozen layer as DETR has it: epsilon is a number in its code."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(3))


def test_what_is_skipped_is_listed_with_its_reason() -> None:
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(torch.nn.BatchNorm2d(3))
    fast = torch.nn.BatchNorm2d(3, momentum=1.5)
    untracked = torch.nn.BatchNorm2d(3, track_running_stats=False)
    model = torch.nn.ModuleDict(
        {
            "plain": torch.nn.BatchNorm2d(3),
            "own": Own(3),
            "frozen": WithoutEpsilon(),
            "scripted": scripted,
            "fast": fast,
            "untracked": untracked,
            "smooth": networks.BatchRenorm1d(3, smooth=True),
        }
    )
    result = ours.convert(model, renorm=True)
    assert result.converted == ["plain"]
    assert result.skipped == {
        "own": "Own is a class of its own, and may compute something else",
        "frozen": "it has no attribute eps",
        "scripted": "its code is compiled already; convert before torch.jit.script",
        "fast": "BatchNorm2d: momentum must be a number in [0, 1] or None: the share of the new "
        "value in the moving statistics; got 1.5.",
        "untracked": "it has no running statistics, which renorm needs",
        "smooth": "smooth=True blends r and d, which no clipping does",
    }
    assert str(result).splitlines()[:2] == [
        "1 converted, 6 skipped",
        "  own: Own is a class of its own, and may compute something else",
    ]


def test_revert_lists_what_stays_ours() -> None:
    moving = ours.BatchNorm2d(3, statistics="moving")
    model = torch.nn.ModuleList([ours.BatchNorm2d(3, activation="relu"), moving])
    model.append(ours.BatchNorm2d(3, renorm=True))
    result = ours.revert(model)
    assert result.skipped == {
        "0": "torch has no activation='relu' in BatchNorm2d",
        "1": "its statistics are frozen; use batchnorm.unfreeze before",
    }
    assert result.converted == ["2"]
    assert list(model[2].state_dict()) == list(torch.nn.BatchNorm2d(3).state_dict())
    assert vars(model[2]).keys() == vars(torch.nn.BatchNorm2d(3)).keys()


def test_what_belongs_to_a_module_stays_with_it() -> None:
    torch.manual_seed(0)
    norm, seen = torch.nn.BatchNorm2d(3, dtype=torch.float64).eval(), []
    norm.register_forward_hook(lambda *_: seen.append(1))
    norm.weight.requires_grad_(False)
    norm.note = "mine"
    model = torch.nn.ModuleDict({"a": norm, "b": norm})
    result = ours.convert(model)
    assert result.converted == ["a"]
    assert model["a"] is model["b"] is norm
    assert not norm.training
    assert norm.note == "mine"
    assert norm.running_mean.dtype is torch.float64
    assert not norm.weight.requires_grad
    norm(X.double())
    assert seen == [1]


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def test_parametrizations_stay_from_before_and_after() -> None:
    theirs = torch.nn.BatchNorm2d(3)
    before, after = copy.deepcopy(theirs), copy.deepcopy(theirs)
    for module in (theirs, before):
        parametrize.register_parametrization(module, "weight", Doubled())
    assert ours.convert(torch.nn.Sequential(before, after)).converted == ["0", "1"]
    parametrize.register_parametrization(after, "weight", Doubled())
    for module in (before, after):
        assert isinstance(module, ours.BatchNorm2d)
        assert_close(module.eval()(X), theirs.eval()(X))
    assert ours.revert(torch.nn.Sequential(before, after)).converted == ["0", "1"]
    for module in (before, after):
        assert not isinstance(module, ours.BatchNorm2d)
        assert_close(module(X), theirs(X))
        parametrize.remove_parametrizations(module, "weight")
        assert type(module) is torch.nn.BatchNorm2d
        assert_close(module.weight.detach(), torch.full((3,), 2.0))


def test_a_parametrized_module_is_copied_with_its_plans() -> None:
    module = ours.BatchNorm2d(3)
    parametrize.register_parametrization(module, "weight", Doubled())
    module(X)
    other = copy.deepcopy(module)
    other.momentum = 0.5
    assert module.momentum == 0.1
    assert_close(other.eval()(X), module.eval()(X))


def test_parametrizations_end_on_a_converted_module() -> None:
    module = torch.nn.BatchNorm2d(3)
    parametrize.register_parametrization(module, "weight", Doubled())
    ours.convert(module)
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is ours.BatchNorm2d
    assert_close(module(X), 2 * torch.nn.BatchNorm2d(3)(X))


@pytest.mark.parametrize("name", ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"])
def test_a_lazy_module_is_converted_before_its_first_input(name) -> None:
    module = getattr(torch.nn, name)()
    ours.convert(module, renorm=True)
    rank = int(name[-2])
    module(torch.randn(4, 3, *[2] * (rank - (rank == 1))))
    assert type(module) is getattr(ours, name.removeprefix("Lazy"))
    assert module.renorm_mean.shape == (3,)


def test_a_synchronized_module_stays_synchronized() -> None:
    module = torch.nn.SyncBatchNorm(3)
    ours.convert(module)
    assert type(module) is ours.SyncBatchNorm
    assert module.synchronized is True
    ours.revert(module)
    assert type(module) is torch.nn.SyncBatchNorm
    assert vars(module).keys() == vars(torch.nn.SyncBatchNorm(3)).keys()


def test_a_mode_starts_from_what_the_module_remembers() -> None:
    module = torch.nn.BatchNorm2d(3)
    module(X * 2 + 1)
    mean, variance = module.running_mean.clone(), module.running_var.clone()
    ours.convert(module, "renorm", momentum=0.05)
    assert (module.momentum, module.renorm, module.renorm_momentum) == (0.05, True, 0.01)
    assert_close(module.renorm_mean, mean)
    assert_close(module.renorm_stddev, torch.sqrt(variance + module.eps))


def test_our_modules_take_new_options() -> None:
    model = torch.nn.Sequential(ours.BatchNorm2d(3))
    assert ours.convert(model, virtual_batch_size=2).converted == ["0"]
    assert model[0].virtual_batch_size == 2


def test_a_converted_network_is_copied_and_pickled() -> None:
    model = made(resnet_with_act)
    ours.convert(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert_close(other(X.double()), copy.deepcopy(model)(X.double()))
    ours.revert(other)
    assert repr(other) == repr(made(resnet_with_act))
