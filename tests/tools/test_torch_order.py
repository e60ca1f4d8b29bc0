"""Layers of PyTorch modules that some batches pass by, or show in another order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import batchnorm

RANDOM = np.random.default_rng(0)


X = RANDOM.normal(5, 2, (23, 3, 6)).astype(np.float32)


class TwoDomains(torch.nn.Module):
    """Long inputs go through one layer, short ones through another, then all through a third."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
        self.both = torch.nn.BatchNorm1d(3, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(self.long(x) if x.shape[2] > 4 else self.short(x))


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("last", ["long", "short"])
def test_a_layer_that_some_batches_pass_by_has_the_statistics_of_the_others(last, layer_by_layer):
    data = {"short": X[:, :, :3] - 9, "long": X}
    model = TwoDomains()
    first = "long" if last == "short" else "short"
    batches = [data[first], data[last]]
    done = batchnorm.reestimate(model, batches, layer_by_layer=layer_by_layer)
    assert done.never_called == ()
    assert done.layers[-1].name == "both"
    for name, x in data.items():
        mean = getattr(model, name).running_mean
        np.testing.assert_allclose(mean, x.mean((0, 2), dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(model.both.running_var, 1, atol=0.02)
    assert {row.layer for row in batchnorm.inspect(model, batches).rows} == {*data, "both"}


class LateFirst(torch.nn.Module):
    """A layer in front of the other that the first batch does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.front(x) if x.shape[2] > 4 else x)


def test_a_layer_that_a_later_batch_shows_in_front_is_settled_first():
    model = LateFirst()
    x = X[:, :, :3]
    done = batchnorm.reestimate(model, [x, X], layer_by_layer=True)
    assert [one.name for one in done.layers] == ["front", "back"]
    with torch.no_grad():
        y = model.eval().front(torch.as_tensor(X)).numpy()
    mean = np.concatenate([x, y], 2).mean((0, 2), dtype=np.float64)
    np.testing.assert_allclose(model.back.running_mean, mean, rtol=1e-5)
