"""How many kernels a step takes on a GPU, and that nothing waits for it in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import interpreted

interpreted.skip_without_triton()

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm

X = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, (6, 3, 5, 4)).astype("float32"))
WEIGHTS = np.linspace(0.5, 2, 6).astype("float32")
RENORM = {"renorm": True, "renorm_clipping": {"rmax": 1.5, "rmin": 0.5, "dmax": 0.5}}
PLAIN = {
    "plain": {},
    "relu": {"activation": "relu"},
    "residual": {"residual": X + 1, "activation": "relu"},
    "channels last": {"axis": -1},
}
MODES: dict[str, dict[str, Any]] = {
    **PLAIN,
    "ghost": {"virtual_batch_size": 3},
    "renorm": RENORM,
    "weights": {"batch_weights": torch.from_numpy(WEIGHTS)},
    "mask": {"mask": torch.ones(6, 5, 4, dtype=torch.bool)},
    "adjustment": {"adjustment": lambda shape: (1.5, 0.5)},
    "everything": {**RENORM, "virtual_batch_size": 3, "batch_weights": torch.from_numpy(WEIGHTS)},
}


def training_step(x: torch.Tensor, state: Any, options: dict[str, Any]) -> Iterator[Any]:
    parameters = {
        name: torch.ones_like(state["moving_mean"]).requires_grad_() for name in ("gamma", "beta")
    }
    how = {"axis": 1, "training": True, **options}
    y, new = batchnorm.batch_norm(x, parameters, state, **how)
    yield y, new
    yield torch.autograd.grad(y, [x, *parameters.values()], torch.ones_like(y))


@pytest.mark.parametrize("mode", list(PLAIN))
def test_two_launches_each_way_and_one_that_remembers(launched: list[str], mode: str) -> None:
    options = PLAIN[mode]
    _, state = batchnorm.init(X, axis=options.get("axis", 1))
    step = training_step(X.clone().requires_grad_(), state, options)
    next(step)
    assert launched == ["moments", "standardize", "remember"]
    launched.clear()
    next(step)
    assert launched == ["backward_sums", "backward_input"]


def test_ghost_batches_take_as_many(launched: list[str]) -> None:
    _, state = batchnorm.init(X, axis=1)
    step = training_step(X.clone().requires_grad_(), state, MODES["ghost"])
    next(step)
    # between them, groups are averaged in array operations
    assert launched == ["moments", "standardize", "remember"]
    launched.clear()
    next(step)
    assert launched == ["backward_sums", "backward_input"]


@pytest.mark.parametrize("mode", ["renorm", "weights", "mask"])
def test_what_must_know_the_moments_takes_one_more(launched: list[str], mode: str) -> None:
    _, state = batchnorm.init(X, axis=1, renorm=mode == "renorm")
    step = training_step(X.clone().requires_grad_(), state, MODES[mode])
    next(step)
    assert launched[:3] == ["moments", "merge", "standardize"]
    launched.clear()
    next(step)
    assert launched == ["backward_sums", "backward_input"]


def test_inference_is_one_launch(launched: list[str]) -> None:
    batchnorm.batch_norm(X, *batchnorm.init(X, axis=1), axis=1)
    assert launched == ["standardize"]


def test_the_same_bits_at_every_run(gpu: Any, small: None) -> None:
    def run() -> list[torch.Tensor]:
        _, state = batchnorm.init(X, axis=1)
        (y, new), slopes = training_step(X.clone().requires_grad_(), state, MODES["weights"])
        return [y, *new.values(), *slopes]

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


class Watched(TorchDispatchMode):
    """The names of the operations that ran, and the devices of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.devices: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names[function.overloadpacket.__name__] += 1
        for one in torch.utils._pytree.tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.devices[one.device.type] += 1
        return result


WAITING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__array__")


@pytest.mark.parametrize("mode", list(MODES))
def test_nothing_in_a_step_asks_for_a_number(
    gpu: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that does nothing, as one that is not done yet: who reads a tensor would wait."""
    options = MODES[mode]
    launched: list[str] = []
    monkeypatch.setattr(gpu, "launch", lambda kernel, *_, **__: launched.append(kernel.__name__))
    _, state = batchnorm.init(X, axis=options.get("axis", 1), renorm="renorm" in options)
    x = X.clone().requires_grad_()

    def waits(*_: Any) -> None:
        raise AssertionError("a tensor was read")

    with Watched() as seen, monkeypatch.context() as patch:
        for name in WAITING:
            patch.setattr(torch.Tensor, name, waits)
        steps = list(training_step(x, state, options))
    assert len(steps) == 2
    assert {"moments", "standardize", "backward_sums", "backward_input"} <= set(launched)
    assert not {"_local_scalar_dense", "equal", "nonzero"} & set(seen.names)


@pytest.mark.parametrize("mode", list(MODES))
def test_everything_stays_on_the_device(
    gpu: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of no memory stand for those of a GPU: they have no value that could be read."""
    monkeypatch.setattr(interpreted.module("backends.torch.device"), "why_not", lambda x: None)
    monkeypatch.setattr(gpu, "launch", lambda *_, **__: None)
    options = {
        name: one.to("meta") if isinstance(one, torch.Tensor) else one
        for name, one in MODES[mode].items()
    }
    x = X.to("meta").requires_grad_()
    _, state = batchnorm.init(x, axis=options.get("axis", 1), renorm="renorm" in options)
    with Watched() as seen:
        steps = list(training_step(x, state, options))
    assert len(steps) == 2
    assert set(seen.devices) == {"meta"}
