"""Masks and batch weights: which shapes fit, and what those that do not are told."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from strategies import call_on

SHAPE = (4, 5, 6, 3)
X = np.random.default_rng(0).normal(size=SHAPE).astype("float32")


@functools.cache
def stepper(engine: engines.Engine, axis: Any) -> Any:
    axis = list(axis) if isinstance(axis, tuple) else axis
    return engines.stepper(engine, engine.quick, training=True, axis=axis)


def run(engine: engines.Engine, axis: Any = -1, **given: Any) -> dict[str, Any]:
    call = call_on(np.random.default_rng(1), X, axis=axis)
    step = stepper(engine, tuple(axis) if isinstance(axis, list) else axis)
    return step(X, call.parameters, call.state, dy=call.dy, **given)


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (-1, [(), (4,), (1, 5), (4, 1, 6), (1, 1, 6, 1)]),
        (1, [(4, 6), (1, 6, 3), (4, 1, 6, 3)]),
        ([1, 3], [(4,), (1, 6), (4, 1, 6, 1)]),
        (0, [(5,), (1, 5, 1, 3)]),
    ],
)
def test_a_mask_broadcasts_from_the_left_over_what_is_not_kept(
    engine: engines.Engine, axis: Any, shapes: list[tuple[int, ...]]
) -> None:
    axes = [a % 4 for a in ([axis] if isinstance(axis, int) else axis)]
    free = [size for i, size in enumerate(SHAPE) if i not in axes]
    for shape in shapes:
        mask = np.random.default_rng(2).random(shape) < 0.6
        sizes = list(shape)
        if len(shape) == 4:
            sizes = [shape[i] for i in range(4) if i not in axes]
        full = np.broadcast_to(mask.reshape(sizes + [1] * (len(free) - len(sizes))), free)
        got, expected = run(engine, axis, mask=mask), run(engine, axis, mask=full.copy())
        for name in ("y", "dx"):
            np.testing.assert_allclose(got[name], expected[name], atol=1e-6)


def test_a_mask_may_be_of_any_type(engine: engines.Engine) -> None:
    mask = np.array([1, 0, 1, 1])
    expected = run(engine, mask=mask.astype(bool))["y"]
    for dtype in ("int32", "float32"):
        np.testing.assert_array_equal(run(engine, mask=mask.astype(dtype))["y"], expected)


def test_a_mask_may_be_a_plain_list(engine: engines.Engine) -> None:
    x = engine.tensor(X)
    parameters, state = batchnorm.init(x)
    tensor = engine.tensor(np.array([1, 0, 1, 1], bool))
    y, expected = (
        batchnorm.batch_norm(x, parameters, state, training=True, mask=mask)[0]
        for mask in ([1, 0, 1, 1], tensor)
    )
    np.testing.assert_array_equal(engine.numpy(y), engine.numpy(expected))


def test_mask_and_weights_multiply(engine: engines.Engine) -> None:
    mask, weights = np.array([1, 0, 1, 1], bool), np.array([1, 2, 3, 4], "float32")
    both = run(engine, mask=mask, batch_weights=weights)
    np.testing.assert_allclose(both["y"], run(engine, batch_weights=mask * weights)["y"], atol=1e-6)


def test_the_scale_of_the_weights_does_not_matter(engine: engines.Engine) -> None:
    weights = np.array([1, 2, 3, 4], "float32")
    got, expected = run(engine, batch_weights=weights), run(engine, batch_weights=1000 * weights)
    np.testing.assert_allclose(got["dx"], expected["dx"], atol=1e-6)


@pytest.mark.parametrize("name", ["mask", "batch_weights"])
@pytest.mark.parametrize(
    ("shape", "axis", "fitting"),
    [
        ((5,), -1, (4, 5, 6)),
        ((4, 6), -1, (4, 5, 6)),
        ((4, 5, 6, 3), -1, (4, 5, 6)),
        ((4, 5), 1, (4, 6, 3)),
        ((4, 5), [1, 3], (4, 6)),
        ((1, 1, 1, 1, 1), 1, (4, 6, 3)),
        ((2,), 1, (4, 6, 3)),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(
    engine: engines.Engine, name: str, shape: tuple[int, ...], axis: Any, fitting: tuple[int, ...]
) -> None:
    """D47: the originals let a wrong length broadcast silently."""
    axes = [axis % 4] if isinstance(axis, int) else axis
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        run(engine, axis, **{name: np.ones(shape, "float32")})
    assert str(caught.value) == (
        f"batch_norm: {name} must broadcast, from the left, to the shape {fitting}; got {shape} "
        f"for an input of shape (4, 5, 6, 3) and axis {axes}."
    )
