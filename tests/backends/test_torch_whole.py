"""Plain calls in one go: the same bits as step by step, and which tensors they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import batchnorm
from batchnorm.backends.torch import KERNELS, UNAVAILABLE

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

LAST = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [
    (6, 3),
    (6, 3, 5),
    (4, 3, 5, 2),
    (2, 3, 2, 5, 3),
    (1, 3, 4, 4),
    (4, 1, 3, 3),
    (4, 3, 1, 1),
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call went in one go."""
    found: list[bool] = []
    own = KERNELS.whole

    def watched(*given: Any) -> Any:
        done = own(*given)
        found.append(done is not None)
        return done

    monkeypatch.setattr(KERNELS, "whole", watched)
    return found


def random(shape: tuple[int, ...], seed: int, memory: torch.memory_format) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(memory_format=memory)


def step(
    x: torch.Tensor, dy: torch.Tensor, training: bool = True, **options: Any
) -> tuple[Any, ...]:
    """y, the gradients of x, gamma and beta, and the state."""
    x = x.detach().requires_grad_()
    parameters, state = batchnorm.init(x, axis=1)
    for name in ("moving_mean", "moving_variance"):
        state[name].uniform_(0.5, 2)
    vectors = [one.uniform_(0.5, 2).requires_grad_() for one in parameters.values()]
    given = dict(zip(parameters, vectors, strict=True))
    y, new = batchnorm.batch_norm(x, given, state, axis=1, training=training, **options)
    return y, *torch.autograd.grad(y, (x, *vectors), dy), new


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_go_gives_the_bits_of_the_steps(
    shape: tuple[int, ...], last: bool, activation: str | None, training: bool,
    monkeypatch: pytest.MonkeyPatch, taken: list[bool],
) -> None:  # fmt: skip
    memory = LAST.get(len(shape), torch.contiguous_format) if last else torch.contiguous_format
    x, dy = random(shape, 1, memory), random(shape, 2, memory)
    torch.manual_seed(0)
    y, dx, d_gamma, d_beta, state = step(x, dy, activation=activation, training=training)
    assert taken == [True]
    assert y.stride() == dx.stride() == x.stride()
    monkeypatch.setattr(KERNELS, "whole", lambda *given: None)
    torch.manual_seed(0)
    expected = step(x, dy, activation=activation, training=training)
    assert_close((y, dx, d_gamma, d_beta, state), expected, rtol=0, atol=0)


@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_in_another_order_of_memory_is_read_right(last: bool, taken: list[bool]) -> None:
    orders = (torch.channels_last, torch.contiguous_format)
    own, other = orders if last else orders[::-1]
    x, dy = random((4, 3, 5, 2), 1, own), random((4, 3, 5, 2), 2, own)
    torch.manual_seed(0)
    alike = step(x, dy)
    torch.manual_seed(0)
    differs = step(x, dy.contiguous(memory_format=other))
    assert taken == [True, True]
    assert_close(differs, alike, rtol=0, atol=0)


def test_inference_takes_both_orders(taken: list[bool]) -> None:
    x = random((4, 3, 5, 2), 1, torch.contiguous_format)
    parameters, state = batchnorm.init(x, axis=1)
    state["moving_mean"] += 1
    found = [
        batchnorm.batch_norm(one, parameters, state, axis=1, training=False)[0]
        for one in (x, x.to(memory_format=torch.channels_last))
    ]
    assert taken == [True, True]
    assert_close(*found, rtol=0, atol=0)
    assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_any_other_order_takes_the_steps(taken: list[bool]) -> None:
    x = random((4, 3, 5, 2), 1, torch.contiguous_format)
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    for one in (turned, x[:, :, ::2], x[::2]):
        parameters, state = batchnorm.init(one, axis=1)
        y, _ = batchnorm.batch_norm(one, parameters, state, axis=1, training=True)
        plain, _ = batchnorm.batch_norm(one.contiguous(), parameters, state, axis=1, training=True)
        assert_close(y, plain)
    assert taken == [False, True] * 3


def test_derivatives_of_inference_of_every_order(taken: list[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gamma, beta = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (3,), (3,))
    )
    state = {
        "moving_mean": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64),
        "moving_variance": torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64),
    }

    def y(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        parameters = {"gamma": gamma, "beta": beta}
        return batchnorm.batch_norm(x, parameters, state, training=False)[0]

    assert torch.autograd.gradcheck(y, (x, gamma, beta), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(y, (x, gamma, beta))
    assert all(taken)


def test_statistics_may_be_updated_before_the_gradient_of_inference(taken: list[bool]) -> None:
    x = random((6, 3), 1, torch.contiguous_format).requires_grad_()
    parameters, state = batchnorm.init(x)
    slope = torch.rsqrt(state["moving_variance"] + 1e-3)
    y, _ = batchnorm.batch_norm(x, parameters, state, training=False)
    state["moving_variance"].fill_(100.0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert taken == [True]
    assert_close(dx, slope.expand(6, 3))
