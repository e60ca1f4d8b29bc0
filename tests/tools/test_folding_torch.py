"""Folding of PyTorch modules: the same outputs without batch normalization, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (9,), 2: (9, 8), 3: (6, 5, 7)}


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and parameters as training leaves them: everywhere different, nowhere 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_(0, 0.5, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=random)
                    module.bias.normal_(0, 0.5, generator=random)
    return model


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0.5, 1, shape).astype(np.float32)


def left(model) -> list[str]:
    kind = nn.modules.batchnorm._BatchNorm
    return [name for name, one in model.named_modules() if isinstance(one, kind)]


def reasons(folded) -> dict[str, str]:
    return {one.layer: one.reason for one in folded.folding.refused}


ZOO = [
    (rank, transposed, groups, padding, before, behind)
    for index, (rank, groups, padding) in enumerate(
        [(1, 1, 0), (2, 2, 0), (3, 1, 1), (2, 4, "same"), (1, 2, 1), (3, 4, 0)]
    )
    for transposed in (False, True)
    for before, behind in [[(1, 1), (0, 2), (2, 0)][(index + transposed) % 3]]
    if not (transposed and padding == "same")
]


@pytest.mark.parametrize(("rank", "transposed", "groups", "padding", "before", "behind"), ZOO)
def test_a_zoo_of_linear_modules_puts_out_the_same(
    rank, transposed, groups, padding, before, behind
):
    kind = (TRANSPOSED if transposed else CONVOLUTIONS)[rank]
    linear = kind(4, 8, 3, groups=groups, padding=padding, bias=bool(rank % 2))
    model = nn.Sequential()
    for index in range(before):
        model.add_module(f"before{index}", NORMS[rank](4, affine=index == 0))
    model.add_module("linear", linear)
    for index in range(behind):
        model.add_module(f"behind{index}", NORMS[rank](8, eps=1e-2, affine=index == 0))
    model.add_module("relu", nn.ReLU())
    shake(model)
    x = data(3, 4, *SIZES[rank])
    folded = batchnorm.fold(model, x)
    assert folded.folding.difference <= 1e-5
    assert all(name.startswith("before") for name in left(folded))
    assert list(reasons(folded)) == left(folded)
    assert all("pads its input" in one or "transposed" in one for one in reasons(folded).values())


@pytest.mark.parametrize("options", [{}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_normalization_before_a_convolution_moves_behind_it(options):
    model = shake(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, **options)))
    folded = batchnorm.fold(model, data(3, 4, 9, 8))
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5


def test_a_linear_layer_takes_both_sides_where_data_shows_the_rank():
    model = shake(
        nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 7), nn.BatchNorm1d(7))
    )
    folded = batchnorm.fold(model, data(9, 5))
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5
    assert reasons(batchnorm.fold(model))["3"] == (
        "not into what is before it: '2' has its channels last, this on axis 1: pass data that "
        "shows its rank; not into what is behind it: the output of '3' is an output of the model"
    )


def test_a_normalization_over_the_other_axis_of_a_linear_layer_stays():
    model = shake(nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7), nn.ReLU()))
    folded = batchnorm.fold(model, data(3, 7, 7))
    assert reasons(folded)["1"].startswith(
        "not into what is before it: '0' has its channels on axis 2, this on axis 1; not into"
    )
    assert folded.folding.difference == 0


def test_normalizations_in_a_row_become_one_where_no_linear_module_is():
    model = shake(
        nn.Sequential(*(nn.BatchNorm1d(5, affine=one) for one in (False, True)), nn.ReLU())
    )
    folded = batchnorm.fold(model, data(9, 5))
    assert folded.folding.folded == (("1", "0"),)
    assert left(folded) == ["0"]
    assert folded.folding.difference <= 1e-5


def test_the_given_module_is_left_bit_for_bit_and_shares_nothing():
    model = shake(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))).train()
    before = [value.numpy().tobytes() for value in model.state_dict().values()]
    folded = batchnorm.fold(model, data(9, 3, 6))
    for value in folded.state_dict().values():
        value.zero_()
    assert [value.numpy().tobytes() for value in model.state_dict().values()] == before
    assert all(one.training for one in model.modules())
    assert not any(one.training for one in folded.modules())


class Twice(nn.Module):
    """A branch: the convolution's output is read twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)

    def forward(self, x, scale=2.0):
        y = self.conv(x)
        return self.norm(y) + scale * y


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class Own(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (
            Twice,
            "norm",
            "not into what is before it: the output of 'conv' has more than one consumer: 'norm', "
            "'mul'; not into what is behind it: 'add' (call_function) is no linear module that "
            "fold knows",
        ),
        (Shared, "norm", "it is shared: called 2 times"),
        (
            lambda: nn.Sequential(nn.Conv1d(3, 4, 1), Own(4)),
            "1",
            "its class Own has a forward of its own",
        ),
        (
            hooked,
            "1",
            "not into what is before it: '0' has hooks; not into what is behind it: the output of "
            "'1' is an output of the model",
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4, track_running_stats=False)),
            "1",
            "it normalizes with the batch: it has no moving statistics",
        ),
    ],
)
def test_what_would_not_be_exact_stays_with_its_reason(make, name, reason):
    folded = batchnorm.fold(shake(make()), data(9, 3, 6))
    assert reasons(folded) == {name: reason}
    assert folded.folding.difference == 0


def test_a_frozen_module_folds_like_any_other():
    model = shake(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)))
    batchnorm.freeze(model)
    folded = batchnorm.fold(model, data(9, 3, 6))
    assert left(folded) == []
    assert folded.folding.difference <= 1e-5


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_traced_is_named():
    with pytest.raises(ValueError, match="trace") as raised:
        batchnorm.fold(Choosing())
    assert str(raised.value) == (
        "fold: model must be a module that torch.fx can trace, so that its graph is known; got "
        "Choosing. TraceError: symbolically traced variables cannot be used as inputs to control "
        "flow"
    )


def test_a_folded_module_exports_and_scripts():
    model = shake(nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU()))
    x = torch.as_tensor(data(9, 3, 6))
    folded = batchnorm.fold(model)
    program = torch.export.export(folded, (x,)).module()
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program(x), model.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def without_operators():
    """torchvision's networks need none of its C++ operators, but its import asks for their names.

    Its binaries load beside the very torch that they were built for only.
    """
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield library
    else:
        yield None


NETWORKS = [
    ("torchvision.models", name) for name in ("resnet18", "mobilenet_v2", "efficientnet_b0")
]


@pytest.mark.parametrize(("package", "name"), [*NETWORKS, ("timm.models", "resnet18")])
def test_known_networks_lose_every_normalization(package, name, without_operators):
    models = pytest.importorskip(package)
    torch.manual_seed(0)
    model = shake(getattr(models, name)(num_classes=10))
    folded = batchnorm.fold(model, data(2, 3, 64, 64))
    assert left(folded) == []
    assert folded.folding.refused == ()
    assert folded.folding.difference <= 1e-5
