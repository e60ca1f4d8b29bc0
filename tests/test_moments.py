"""Merging moments: however the values were split, the result is that of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines
from batchnorm._moments import Moments, average, merge, unbiased
from strategies import thorough

SPLITS = [(12,), (5, 7), (1, 1, 10), (4, 0, 8), (3, 4, 5)]


def measured(engine: engines.Engine, parts: list[np.ndarray]) -> Moments:
    """Moments of some parts, in float32, the mean in two pieces."""
    means = np.array([p.mean(0) if len(p) else np.zeros(2) for p in parts])
    rounded = means.astype("float32")
    variances = [p.var(0) if len(p) else np.zeros(2) for p in parts]
    return Moments(
        engine.tensor(rounded),
        engine.tensor((means - rounded).astype("float32")),
        engine.tensor(np.array(variances, "float32")),
        engine.tensor(np.array([[len(p)] for p in parts], "float32")),
    )


def numbers(engine: engines.Engine, moments: Moments) -> tuple[Any, Any, Any]:
    mean, remainder, variance, count = map(engine.numpy, moments)
    return (mean + remainder)[0], variance[0], count[0, 0]


def test_merged_moments_do_not_depend_on_the_split(engine: engines.Engine) -> None:
    @thorough(15)
    @given(st.sampled_from(SPLITS), st.sampled_from([0.0, 10.0, 1e5]), st.integers(0, 99))
    def holds(split: tuple[int, ...], offset: float, seed: int) -> None:
        x = np.random.default_rng(seed).normal(offset, 1.5, (12, 2))
        parts = np.split(x, np.cumsum(split)[:-1])
        mean, variance, count = numbers(engine, merge(engine.ops, measured(engine, parts)))
        np.testing.assert_allclose(mean, x.mean(0), rtol=0, atol=1e-6 + 1e-8 * offset)
        np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)
        assert count == 12

    holds()


def test_merging_can_be_done_in_steps(engine: engines.Engine) -> None:
    x = np.random.default_rng(0).normal(3.0, 1.0, (12, 2))
    first = merge(engine.ops, measured(engine, [x[:2], x[2:7]]))
    second = merge(engine.ops, measured(engine, [x[7:8], x[8:]]))
    both = Moments(*(
        engine.tensor(np.concatenate([engine.numpy(a), engine.numpy(b)]).astype("float32"))
        for a, b in zip(first, second, strict=True)
    ))  # fmt: skip
    mean, variance, count = numbers(engine, merge(engine.ops, both))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)
    assert count == 12


def test_the_average_leaves_out_the_spread_between_groups(engine: engines.Engine) -> None:
    x = np.random.default_rng(1).normal(size=(12, 2))
    parts = [x[:4], x[4:]]
    _, variance, _ = numbers(engine, average(engine.ops, measured(engine, parts)))
    np.testing.assert_allclose(variance, (4 * x[:4].var(0) + 8 * x[4:].var(0)) / 12, rtol=1e-5)


@pytest.mark.parametrize("combine", [average, merge])
def test_groups_without_values_have_no_share(engine: engines.Engine, combine: Any) -> None:
    x = np.random.default_rng(2).normal(size=(5, 2))
    alone = numbers(engine, combine(engine.ops, measured(engine, [x])))
    among = numbers(engine, combine(engine.ops, measured(engine, [x[:0], x, x[:0]])))
    np.testing.assert_allclose(among[0], alone[0], atol=1e-7)
    np.testing.assert_allclose(among[1], alone[1], rtol=1e-6)


@pytest.mark.parametrize("combine", [average, merge])
def test_no_values_at_all_give_zeros(engine: engines.Engine, combine: Any) -> None:
    none = np.zeros((0, 2))
    for part in numbers(engine, combine(engine.ops, measured(engine, [none, none]))):
        np.testing.assert_array_equal(part, np.zeros_like(part))


@pytest.mark.parametrize(("count", "factor"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2), (5.0, 1.25)])
def test_the_unbiased_variance_divides_by_one_less(
    engine: engines.Engine, count: float, factor: float
) -> None:
    one = engine.tensor(np.ones((1, 2), "float32"))
    counts = engine.tensor(np.full((1, 1), count, "float32"))
    got = unbiased(engine.ops, Moments(one, one, one, counts))
    np.testing.assert_allclose(engine.numpy(got.variance), [[factor, factor]])
