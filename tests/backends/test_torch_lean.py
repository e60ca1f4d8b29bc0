"""PyTorch's composite path is lean: what it keeps for the backward pass, and its operations.

It is the only path on a device without our kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm
import lean
import reference
from strategies import call_on

SHAPE = (lean.SAMPLES, 16, 14, 14)
MASK = np.random.default_rng(0).random((SHAPE[0], *SHAPE[2:])) < 0.7
MODES: dict[str, dict[str, Any]] = {**lean.MODES, "mask": {"mask": MASK}}
PLAIN = [("float32", "plain"), ("float16", "plain"), ("bfloat16", "plain")]
CASES = PLAIN + [("float32", mode) for mode in list(MODES)[1:]]
# Forward, backward, inference. 16 and one constant; 16 bits are widened, twice in each direction.
LIMITS = {
    "plain": (17, 10, 5),
    "16 bits": (19, 12, 6),
    "relu": (18, 13, 6),
    "renorm": (67, 16, 5),
    "weights": (38, 25, 7),
    "mask": (39, 25, 8),
    "ghost": (24, 12, 5),
}
FREE = (
    "empty", "view", "_unsafe_view", "expand", "permute", "detach", "alias", "select", "slice",
    "lift_fresh",
)  # fmt: skip


def a_call(dtype: str, mode: str) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """A training step's forward as a function of x, gamma and beta, and these."""
    x = torch.tensor(np.random.default_rng(1).normal(1, 2, SHAPE), dtype=getattr(torch, dtype))
    parameters, state = batchnorm.init(x, axis=1, renorm=mode == "renorm")
    options = dict(MODES[mode], axis=1, fused=False)

    def call(x: Any, gamma: Any, beta: Any, training: bool = True) -> torch.Tensor:
        given = {"gamma": gamma, "beta": beta}
        return batchnorm.batch_norm(x, given, state, training=training, **options)[0]

    return call, [one.requires_grad_() for one in (x, *parameters.values())]


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes that autograd keeps, by the address of their memory."""
    found: dict[int, int] = {}

    def pack(one: torch.Tensor) -> torch.Tensor:
        storage = one.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        yield found


class Operations(TorchDispatchMode):
    """The names of the operations that ran; views and allocations are free.

    And how many results as large as x, in numbers, took memory of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.new = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if not name.startswith(FREE):
            self.names.append(name)
        result = function(*args, **(kwargs or {}))
        given = {_memory(one) for one in (*args, *(kwargs or {}).values())}
        if isinstance(result, torch.Tensor) and _memory(result) not in given:
            self.new += result.numel() >= np.prod(SHAPE)
        return result


def _memory(one: Any) -> int | None:
    return one.untyped_storage().data_ptr() if isinstance(one, torch.Tensor) else None


@pytest.mark.parametrize(("dtype", "mode"), CASES)
def test_the_backward_pass_finds_x_and_vectors_and_nothing_else(dtype: str, mode: str) -> None:
    call, operands = a_call(dtype, mode)
    own = operands[0].numel() * operands[0].element_size()
    with kept() as found:
        call(*operands)
    given = sum(one.size * 4 for one in MODES[mode].values() if isinstance(one, np.ndarray))
    assert own <= sum(found.values()) <= 1.15 * own + given


@pytest.mark.parametrize(("dtype", "mode"), CASES)
def test_every_mode_is_a_few_operations(dtype: str, mode: str) -> None:
    call, operands = a_call(dtype, mode)
    with Operations() as there:
        y = call(*operands)
    dy = torch.ones_like(y)
    with Operations() as back:
        y.backward(dy)
    with Operations() as moving, torch.no_grad():
        call(*operands, training=False)
    counted = [len(one.names) for one in (there, back, moving)]
    limits = LIMITS[mode if dtype == "float32" else "16 bits"]
    assert all(number <= limit for number, limit in zip(counted, limits, strict=True)), counted


@pytest.mark.parametrize("mode", ["plain", "renorm", "ghost", "mask"])
def test_results_take_the_memory_of_what_is_no_longer_needed(mode: str) -> None:
    """x - mean, and its squares or products: y and dx are where one of them was.

    A mask wants x without the values that do not count beside it.
    """
    call, operands = a_call("float32", mode)
    with Operations() as there:
        y = call(*operands)
    dy = torch.ones_like(y)
    with Operations() as back:
        y.backward(dy)
    assert (there.new, back.new) == (3 if mode == "mask" else 2, 2)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
def test_the_moving_averages_are_the_reference_s(unbiased: bool, on_nonfinite: str) -> None:
    """They have operations of their own, by lists of tensors."""
    rng = np.random.default_rng(2)
    x = rng.normal(3, 2, (6, 5, 3)).astype("float32")
    x[2, 1, 1] = np.nan
    options = {"momentum": 0.7, "unbiased_moving_variance": unbiased, "on_nonfinite": on_nonfinite}
    call = call_on(rng, x)
    expected = reference.batch_norm(x, call.parameters, call.state, training=True, **options)
    parameters, state = (
        {name: torch.tensor(value) for name, value in one.items()}
        for one in (call.parameters, call.state)
    )
    _, new = batchnorm.batch_norm(
        torch.tensor(x), parameters, state, training=True, fused=False, **options
    )
    assert set(new) == set(state)
    for name, value in new.items():
        np.testing.assert_allclose(value, expected.state[name], rtol=1e-6, err_msg=name)


def everything(
    x: torch.Tensor, dy: torch.Tensor, options: dict[str, Any], order: int = 1
) -> list[np.ndarray]:
    """y, the state and the derivatives of a call that masks, of this order at most."""
    rng = np.random.default_rng(4)
    parameters, state = batchnorm.init(x, axis=1)
    gamma, beta = (torch.tensor(rng.normal(1, 1, one.shape), dtype=one.dtype).requires_grad_()
                   for one in parameters.values())  # fmt: skip
    operands = [x.requires_grad_(), gamma, beta]
    given = {"gamma": gamma, "beta": beta}
    y, state = batchnorm.batch_norm(x, given, state, training=True, axis=1, fused=False, **options)
    found = torch.autograd.grad(y, operands, dy, create_graph=order > 1)
    if order > 1:
        total = sum(one.sum() for one in found[:2])
        found += torch.autograd.grad(total, operands[:2])
    return [one.double().numpy(force=True) for one in (y, *state.values(), *found)]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "negative"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("ghost", [None, 2])
def test_many_numbers_become_0_by_their_bits(
    ghost: int | None,
    activation: str | None,
    dtype: str,
    memory: str,
    order: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU `masked_fill` is slow: the same, down to what is NaN and what is not."""
    rng = np.random.default_rng(3)
    values, mask = rng.normal(3, 2, (6, 5, 4, 3)), rng.random((6, 4, 3)) < 0.6
    absent = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 2)]
    largest = 3e38 if order == 1 else 9.0  # else there is nothing left of the second derivatives
    for place, value in zip(absent, (np.nan, np.inf, -np.inf, largest), strict=True):
        sample, *rest = place
        mask[place] = False
        values[(sample, 1, *rest)] = value
    values[4, 2, 1, 1], mask[4, 1, 1] = np.nan, True  # one that counts
    upstream = rng.normal(0, 1, values.shape)
    upstream[0, 1, 0, 0] = np.nan  # where y is made of nothing: it must not pass
    options = {"mask": mask, "virtual_batch_size": ghost, "activation": activation}

    def tensor(array: np.ndarray) -> torch.Tensor:
        one = torch.tensor(array, dtype=getattr(torch, dtype))
        if memory == "channels_last":
            return one.contiguous(memory_format=torch.channels_last)
        if memory == "negative" and dtype != "bfloat16":  # a view that says: the other sign
            return torch.complex(torch.zeros_like(one), -one).conj().imag
        return one

    found = []
    for large in (1, 10**9):
        monkeypatch.setattr("batchnorm.backends.torch.operations.LARGE", large)
        found.append(everything(tensor(values), tensor(upstream), options, order))
    bits, masked = found
    assert np.isnan(masked[0]).any()
    assert not np.isnan(masked[0][:, 1]).any()
    tolerance = {"float64": 1e-12, "bfloat16": 2e-2}.get(dtype, 1e-5)
    for one, other in zip(bits, masked, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
