"""The GPU kernels against those of the CPU, operator by operator: equal within rounding."""

from __future__ import annotations

from typing import Any

import interpreted

interpreted.skip_without_triton()

import pytest
import torch

# NumPy's, in which Triton's interpreter computes: infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

SIZES = ((1, 1, 37, 5, 1), (5, 1, 1, 3, 11), (3, 2, 4, 3, 1), (3, 2, 2, 3, 70), (2, 1, 1, 0, 4))
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3}
CASES = [
    (sizes, dtype, weighted)
    for i, sizes in enumerate(SIZES)
    for dtype, weighted in list(
        zip(ROUNDING, ([True, False, True] if i % 2 else [False, True, False]), strict=True)
    )
]


@pytest.fixture
def both() -> tuple[dict, dict]:
    cpu, gpu = (interpreted.module(f"backends.torch.{one}").kernels for one in ("kernels", "gpu"))
    return cpu, gpu


def compare(both: Any, name: str, *operands: Any) -> tuple[torch.Tensor, ...]:
    """What the CPU's kernel gives; the GPU's must give the same."""
    found = [run[name](*operands) for run in both]
    wanted, got = ([one] if isinstance(one, torch.Tensor) else list(one) for one in found)
    for one, other in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if not other.numel():
            continue
        size = max(1.0, float(other.double().abs().max()))
        bar = 4 * ROUNDING[one.dtype] * size
        torch.testing.assert_close(one, other, rtol=0, atol=bar, msg=lambda said: f"{name}: {said}")
    return tuple(wanted)


def given(sizes: tuple, dtype: torch.dtype, weighted: bool) -> tuple[Any, ...]:
    """x far from zero, dy, weights, scale and offset."""
    random = torch.Generator().manual_seed(sum(sizes))
    a, g, b, c, d = sizes
    x, dy = (torch.randn(sizes, generator=random, dtype=torch.float64) for _ in range(2))
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    scale, offset = (torch.rand(g, c, generator=random, dtype=wide) for _ in range(2))
    weights = torch.rand(a, g, b, 1, d, generator=random, dtype=wide) if weighted else None
    if weights is not None:
        weights = weights * (weights > 0.4)
        x[(weights == 0).expand_as(x)] = torch.inf
    return (2 * x + 5).to(dtype), dy.to(dtype), weights, scale + 0.5, offset


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("sizes", "dtype", "weighted"), CASES)
def test_the_same_numbers(both: Any, sizes: tuple, dtype: torch.dtype, weighted: bool) -> None:
    x, dy, weights, scale, offset = given(sizes, dtype, weighted)
    measured = compare(both, "moments", x, sizes, weights)
    affine, how = (scale, offset), (1e-3, 1)
    y, *_ = compare(both, "forward_add", x, sizes, dy, weights, *affine, *how)
    compare(both, "forward", x, sizes, weights, None, offset, 1e-3, 0)
    vectors = (*measured, *affine, None)
    compare(both, "standardize", x, sizes, weights, *vectors, *how, False)
    compare(both, "backward_add", x, sizes, dy, y, weights, *vectors, *how, False)
    frozen = (measured[0], None, measured[2], None, scale, None, None)
    compare(both, "backward", x, sizes, dy, weights, *frozen, 1e-3, 0, True)
    operands = (x, sizes, dy, weights, *measured[:3], *affine)
    sums = compare(both, "backward_sums", *operands, 1e-3, 0)
    live = (torch.arange(scale.numel()).view(scale.shape) % 2).to(scale.dtype)
    compare(both, "backward_input", x, sizes, dy, weights, *measured, *affine, live, *sums, 1e-3, 0)


def test_a_nan_spoils_its_own_channel_alone(both: Any, small: None) -> None:
    x = torch.randn(3, 1, 1, 4, 50, generator=torch.Generator().manual_seed(0))
    clean = both[1]["moments"](x, tuple(x.shape), None)
    for value in (torch.nan, torch.inf):
        x[2, 0, 0, 1, 7] = value
        mean, remainder, variance, _ = both[1]["moments"](x, tuple(x.shape), None)
        assert not torch.isfinite(variance[0, 1])
        others = [0, 2, 3]
        for got, wanted in zip((mean, remainder, variance), clean, strict=False):
            assert torch.equal(got[0, others], wanted[0, others])


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("propagate", [False, True])
def test_the_same_is_remembered(unbiased: bool, propagate: bool) -> None:
    cpu, gpu = (interpreted.module(f"backends.torch.{one}").remember for one in ("kernels", "gpu"))
    mean, remainder, variance = (
        torch.arange(6.0).view(2, 3) + i for i in (torch.tensor(0.5), 1e-3, torch.tensor(2.0))
    )
    variance[1, 0], mean[0, 1] = torch.nan, torch.inf
    count = torch.tensor([[4.0], [1.0]])
    state = {
        "moving_mean": torch.full((6,), 3.0),
        "moving_variance": torch.full((6,), 2.0),
        "skipped_updates": torch.arange(6, dtype=torch.int32),
        "num_updates": torch.tensor(7, dtype=torch.int32),
    }
    moments = (mean, remainder, variance, count)
    wanted, got = (one(state, moments, 0.9, unbiased, propagate) for one in (cpu, gpu))
    assert set(got) == set(state)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=2e-7, atol=0, equal_nan=True)
    assert state["num_updates"] == 7
    strided = {**state, "moving_mean": torch.zeros(12)[::2]}
    assert gpu(strided, moments, 0.9, unbiased, propagate) is None
