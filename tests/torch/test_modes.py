"""Our modules in their modes, against the independent reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import batchnorm.torch as ours
import reference

# torch's names and conventions: the reference has the core's
RNG = np.random.default_rng(7)
SHAPE = (6, 3, 4)
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0] * 4, [1, 1, 0, 0], [1] * 4], bool)
WEIGHTS = RNG.uniform(0.2, 2, 6)
SLOW = {"rmax": lambda step: 1 + step / 10, "rmin": 0.5, "dmax": lambda step: step / 5}


def half(shape: tuple[int, ...]) -> tuple[Any, Any]:
    return np.full((1, 3, 1), 0.5), np.full((1, 3, 1), 0.25)


MODES = {
    "renorm": {"renorm": True, "renorm_momentum": 0.2},
    "renorm, clipped by functions of the step": {"renorm": True, "renorm_clipping": SLOW},
    "renorm to the moving statistics": {"renorm": True, "renorm_momentum": None},
    "ghost": {"virtual_batch_size": 2},
    "ghost, pooled": {"virtual_batch_size": 3, "pooled_moving_variance": True},
    "ghost and renorm": {"virtual_batch_size": 2, "renorm": True},
    "chunks": {"virtual_batch_size": 2, "ghost_order": "chunks"},
    "cumulative": {"momentum": None},
    "cumulative chunks": {"momentum": None, "virtual_batch_size": 4, "ghost_order": "chunks"},
    "adjustment": {"adjustment": half},
    "zero debias": {"zero_debias": "both"},
    "zero debias and renorm": {"zero_debias": "both", "renorm": True},
    "moving": {"statistics": "moving"},
    "without update": {"update_statistics": False},
    "composite": {"fused": False},
}
GIVEN = {
    "nothing": {},
    "mask": {"mask": MASK},
    "mask of samples": {"mask": MASK[:, 0]},
    "weights": {"batch_weights": WEIGHTS},
    "mask and weights": {"mask": MASK, "batch_weights": WEIGHTS},
}
CORE = {"running_mean": "moving_mean", "running_var": "moving_variance"}


def of_reference(options: dict[str, Any]) -> dict[str, Any]:
    """Our options in the core's conventions."""
    changed = {k: v for k, v in options.items() if k not in ("fused", "activation")}
    for name, default in (("momentum", 0.1), ("renorm_momentum", 0.01)):
        share = changed.get(name, default)
        changed[name] = None if share is None else 1 - share
    return {"axis": 1, "epsilon": 1e-5, "unbiased_moving_variance": True, **changed}


def state_of(module: Any) -> dict[str, np.ndarray]:
    """What a module remembers, in the names of the reference."""
    state = {CORE.get(name, name): value.numpy() for name, value in module.named_buffers()}
    state["num_updates"] = state.pop("num_batches_tracked")
    if "renorm_mean" in state:
        state["moving_stddev"] = np.sqrt(state["moving_variance"] + module.eps)
    return state


def check(options: dict[str, Any], given: dict[str, np.ndarray], residual: bool = False) -> None:
    """Three steps and an inference of a module in float64, against the reference."""
    torch.manual_seed(0)
    relu = options.get("activation") == "relu"
    module = ours.BatchNorm1d(3, dtype=torch.float64, **options)
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -1, 2)
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    parameters = {"gamma": module.weight, "beta": module.bias}
    parameters = {name: one.detach().numpy() for name, one in parameters.items()}
    for training in (True, True, True, False):
        x, dy, r = (torch.randn(SHAPE, dtype=torch.float64) for _ in range(3))
        x = (x * 2 + 1).requires_grad_()
        r = (r if residual else torch.zeros_like(r)).requires_grad_()
        state = {name: value.copy() for name, value in state_of(module).items()}
        y = module.train(training)(x, **tensors, residual=r if residual else None)
        open_ = (y > 0).numpy() if relu else np.ones(SHAPE, bool)
        found = torch.autograd.grad(y, [x, module.weight, module.bias], dy, retain_graph=residual)
        wanted = reference.batch_norm(
            x.detach().numpy(),
            parameters,
            state,
            training=training,
            dy=dy.numpy() * open_,
            **of_reference(options),
            **given,
        )
        expected = wanted.y + r.detach().numpy()
        expected = np.maximum(expected, 0) if relu else expected
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
        gradients = (wanted.dx, wanted.gradients["gamma"], wanted.gradients["beta"])
        for got, one in zip(found, gradients, strict=True):
            np.testing.assert_allclose(got.numpy(), one, rtol=1e-8, atol=1e-8)
        if residual:
            (slope,) = torch.autograd.grad(y, r, dy)
            np.testing.assert_allclose(slope.numpy(), dy.numpy() * open_)
        for name, value in state_of(module).items():
            np.testing.assert_allclose(value, wanted.state[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_that_of_the_reference(name) -> None:
    check(MODES[name], {})


@pytest.mark.parametrize("given", GIVEN)
def test_masks_and_weights_are_those_of_the_reference(given) -> None:
    check({}, GIVEN[given])
    check({"renorm": True}, GIVEN[given])


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_residual_is_added_before_the_activation(activation, fused) -> None:
    options = {"activation": activation, "fused": fused}
    check(options, {})
    check(options, {}, residual=True)
    check({"renorm": True, "virtual_batch_size": 3, **options}, {"mask": MASK}, residual=True)


def test_a_mask_of_lengths_is_true_for_the_first_positions() -> None:
    mask = ours.mask_of_lengths(torch.tensor([3, 0, 4]), 4)
    assert mask.tolist() == [[True, True, True, False], [False] * 4, [True] * 4]


def test_padding_does_not_matter_under_a_mask_of_lengths() -> None:
    lengths = torch.tensor([4, 1, 3])
    x = torch.randn(3, 2, 4)
    mask = ours.mask_of_lengths(lengths, 4)
    padded = torch.where(mask[:, None], x, torch.nan)
    values = x.transpose(1, 2)[mask]
    module, plain = ours.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    y, wanted = module(padded, mask), plain(values)
    assert_close(y.transpose(1, 2)[mask], wanted)
    assert_close(module.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([1, 2], TypeError, "mask_of_lengths: lengths must be a tensor of integers; got list."),
        (
            torch.ones(3),
            TypeError,
            "mask_of_lengths: lengths must be a tensor of integers; got torch.float32.",
        ),
        (
            torch.ones(3, 2, dtype=torch.int64),
            ValueError,
            "mask_of_lengths: lengths must have the shape [N]; got (3, 2).",
        ),
    ],
    ids=str,
)
def test_lengths_must_be_integers(lengths, error, message) -> None:
    with pytest.raises(error) as caught:
        ours.mask_of_lengths(lengths, 4)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [None, -1, 2.0, True])
def test_the_size_of_a_mask_must_be_an_integer(size) -> None:
    with pytest.raises(ValueError, match="size must be") as caught:
        ours.mask_of_lengths(torch.tensor([1]), size)
    assert str(caught.value) == f"mask_of_lengths: size must be an int >= 0; got {size!r}."


@pytest.mark.parametrize(("how", "kept"), [("skip", True), ("propagate", False)])
def test_a_nan_spoils_its_channel_only_where_that_is_asked_for(how, kept) -> None:
    module = ours.BatchNorm1d(2, on_nonfinite=how)
    module(torch.tensor([[1.0, torch.nan], [2.0, 1.0]]))
    assert module.running_mean[0] != 0
    assert (module.running_mean[1] == 0) == kept
    assert module.skipped_updates.tolist() == [0, int(kept)]


def test_a_nan_raises_where_that_is_asked_for() -> None:
    module = ours.BatchNorm1d(2, on_nonfinite="raise")
    with pytest.raises(FloatingPointError) as caught:
        module(torch.tensor([[1.0, torch.nan], [2.0, 1.0]]))
    assert str(caught.value) == (
        "BatchNorm1d: the batch must have a finite mean and variance; got NaN or infinity in at "
        "least one channel. Clean the input, or use on_nonfinite='skip' to leave such channels out "
        "of the moving statistics."
    )
    assert int(module.num_batches_tracked) == 0


def test_cumulative_averages_leave_out_what_is_not_finite() -> None:
    module = ours.BatchNorm1d(1, momentum=None)
    for value in (1.0, torch.nan, 3.0):
        module(torch.tensor([[value], [value + 1]]))
    assert int(module.skipped_updates) == 1
    assert torch.isfinite(module.running_mean).all()
