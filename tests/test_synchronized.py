"""`synchronized` where there is one replica; over many, each engine has its file in `backends/`."""

from __future__ import annotations

import numpy as np
import pytest

import batchnorm
from batchnorm._moments import Moments, merge_replicas
from batchnorm._options import Options


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_one_replica_equals_the_plain_function(engine, mode: str) -> None:
    x = engine.tensor(np.random.default_rng(0).normal(size=(6, 3)).astype("float32"))
    parameters, state = batchnorm.init(x)
    how = engine.modes[-1] if mode == "compiled" else "eager"

    def step(x, synchronized):
        return batchnorm.batch_norm(x, parameters, state, training=True, synchronized=synchronized)[
            0
        ]

    plain = engine.run(lambda x: step(x, False), x, mode=how)
    synchronized = engine.run(lambda x: step(x, True), x, mode=how)
    np.testing.assert_array_equal(engine.numpy(plain), engine.numpy(synchronized))


@pytest.mark.parametrize("value", [None, 2, 0.5])
def test_what_names_no_group_is_refused_at_once(value) -> None:
    with pytest.raises(TypeError) as caught:
        Options(synchronized=value)
    assert str(caught.value) == (
        "batch_norm: synchronized must be True, False, a process group, or the name of one or of a "
        f"mapped axis; got {value!r}."
    )


class Gathered:
    """A backend whose replicas are the rows that it was made of, the first of them its own."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows = rows

    broadcast_to = staticmethod(np.broadcast_to)
    shape = staticmethod(np.shape)

    @staticmethod
    def fill(x, condition, value):
        return np.where(condition, value, x).astype(x.dtype)

    @staticmethod
    def stop_gradient(x):
        return x

    @staticmethod
    def concatenate(parts, axis):
        return np.concatenate(parts, axis)

    @staticmethod
    def equal(x, y):
        return np.equal(x, y)

    @staticmethod
    def sum(x, axis):
        return np.sum(x, axis, keepdims=True)

    def all_gather(self, x, replicas):
        return np.stack([x, *self.rows])


def test_replicas_with_and_without_values_merge_to_the_moments_of_all() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(1e4, 1, (2, n, 3)) for n in (5, 3, 0, 1)]  # [G, n, C] on each

    def packed(x):
        n = np.full((2, 1), x.shape[1], float)
        mean = x.mean(1) if x.shape[1] else np.zeros((2, 3))
        variance = x.var(1) if x.shape[1] else np.zeros((2, 3))
        rounded = mean.astype("float32")
        return Moments(*(part.astype("float32") for part in (rounded, mean - rounded, variance, n)))

    first, *others = (packed(x) for x in values)
    rest = [np.concatenate(tuple(one), 1) for one in others]
    merged = merge_replicas(Gathered(rest), first, None)
    together = np.concatenate(values, 1)
    mean = merged.mean.astype("float64") + merged.remainder
    np.testing.assert_allclose(mean, together.mean(1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(merged.variance, together.var(1), rtol=1e-6)
    np.testing.assert_array_equal(merged.count, [[9], [9]])
