"""The presets, against the peers' formulas."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm.torch as ours
import peers
import reference

GAMMA, BETA = np.array([0.7, 1.5, -2.0]), np.array([0.1, -0.4, 2.0])


def module(name: str, **changes: Any) -> Any:
    made = ours.BatchNorm1d(3, dtype=torch.float64, **ours.preset(name, **changes))
    with torch.no_grad():
        made.weight.copy_(torch.tensor(GAMMA))
        made.bias.copy_(torch.tensor(BETA))
    return made


def compare(made: Any, peer: Any, rows: int = 11, steps: int = 5) -> None:
    """Steps of a module and of a peer's formula: outputs and statistics."""
    rng = np.random.default_rng(0)
    mean, variance = np.zeros(3), np.ones(3)
    for step in range(steps):
        x = rng.normal(size=(rows, 3)) * [1, 3, 0.2] + [0, 1, 5]
        y, mean, variance = peer(x, GAMMA, BETA, mean, variance, step)
        np.testing.assert_allclose(made(torch.tensor(x)).detach(), y, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(made.running_mean, mean, rtol=1e-10)
        np.testing.assert_allclose(made.running_var, variance, rtol=1e-10)


def test_crossq_is_torchrls_layer_before_and_after_the_warm_up() -> None:
    def peer(*args: Any) -> Any:
        return peers.crossq(*args, warmup=3)

    compare(module("crossq", warmup=3), peer)


@pytest.mark.parametrize("rows", [3, 8, 11])
def test_tabnet_is_a_loop_over_chunks(rows) -> None:
    def peer(*args: Any) -> Any:
        return peers.tabnet(*args[:-1], size=4)

    compare(module("tabnet", virtual_batch_size=4), peer, rows)


def test_crossq_has_the_state_of_torchs_module() -> None:
    assert list(module("crossq").state_dict()) == list(torch.nn.BatchNorm1d(3).state_dict())


@pytest.mark.parametrize("step", [0, 4_999, 5_000, 15_000, 22_500, 25_000, 39_000, 40_000, 10**6])
def test_the_bounds_of_renorm_are_those_of_its_paper(step) -> None:
    clipping = ours.preset("renorm")["renorm_clipping"]
    for name, wanted in peers.ioffe_bounds(step).items():
        assert float(clipping[name](torch.tensor(float(step)))) == pytest.approx(wanted)


def test_renorm_takes_its_bounds_at_the_step_that_a_checkpoint_has() -> None:
    made = module("renorm")
    made.num_batches_tracked.fill_(20_000)
    x = np.random.default_rng(1).normal(size=(5, 3)) * 4 + 1
    state = {
        "moving_mean": np.zeros(3),
        "moving_variance": np.ones(3),
        "moving_stddev": np.sqrt(np.ones(3) + 1e-5),
        "renorm_mean": np.zeros(3),
        "renorm_stddev": np.sqrt(np.ones(3) + 1e-5),
    }
    wanted = reference.batch_norm(
        x,
        {"gamma": GAMMA, "beta": BETA},
        state,
        training=True,
        momentum=0.99,
        epsilon=1e-5,
        renorm=True,
        renorm_clipping=peers.ioffe_bounds(20_000),
        unbiased_moving_variance=True,
    )
    np.testing.assert_allclose(made(torch.tensor(x)).detach(), wanted.y, rtol=1e-9)
    np.testing.assert_allclose(made.renorm_stddev, wanted.state["renorm_stddev"], rtol=1e-9)


def test_a_ramp_of_no_length_is_a_jump() -> None:
    ramp = ours.Ramp(1.0, 3.0, 4, 4)
    assert [float(ramp(torch.tensor(float(step)))) for step in (0, 3, 4, 5)] == [1, 1, 3, 3]


@pytest.mark.parametrize("name", ["renorm", "crossq", "tabnet"])
def test_a_module_of_a_preset_is_pickled(name) -> None:
    made = module(name)
    assert repr(pickle.loads(pickle.dumps(made))) == repr(made)


def test_keywords_take_the_place_of_the_presets() -> None:
    assert ours.preset("tabnet", virtual_batch_size=64)["virtual_batch_size"] == 64
    clipping = ours.preset("renorm", warmup=10)["renorm_clipping"]
    assert (clipping["rmax"].begin, clipping["rmax"].end) == (10, 35_010)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be") as caught:
        ours.preset("ghost")
    assert str(caught.value) == (
        "preset: name must be one of 'renorm', 'crossq', 'tabnet'; got 'ghost'."
    )
    with pytest.raises(ValueError, match="warmup") as refused:
        ours.preset("tabnet", warmup=3)
    assert str(refused.value) == "preset: warmup must be left out with 'tabnet'; got 3."
    for warmup, error in (("a", TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error) as wrong:
            ours.preset("renorm", warmup=warmup)
        assert str(wrong.value).startswith("preset: warmup must be a number of steps, an int >= 0;")
