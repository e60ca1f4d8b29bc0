"""The view: integers in, integers out, and laying an array out loses nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines
from batchnorm import _axes, batch_norm
from strategies import SHAPES, axes_of, random_state, thorough


@pytest.mark.parametrize(
    ("shape", "axes", "ghost", "canonical"),
    [
        ((2, 3, 4, 5), (3,), None, (1, 1, 24, 5, 1)),
        ((2, 5, 3, 4), (1,), None, (2, 1, 1, 5, 12)),
        ((2, 3, 4, 5), (1, 3), None, (2, 3, 4, 5, 1)),
        ((6, 3, 4, 5), (3,), 2, (2, 3, 12, 5, 1)),
        ((6, 5, 3, 4), (1,), 2, (2, 3, 1, 5, 12)),
        ((2, 3, 4, 5), (2, 3), None, (1, 1, 6, 20, 1)),
        ((5,), (0,), None, (1, 1, 1, 5, 1)),
        ((5, 2), (0,), None, (1, 1, 1, 5, 2)),
        ((0, 3), (1,), None, (1, 1, 0, 3, 1)),
    ],
)
def test_the_common_layouts_need_no_copy(
    shape: tuple[int, ...], axes: tuple[int, ...], ghost: int | None, canonical: tuple[int, ...]
) -> None:
    groups = None if ghost is None else shape[0] // ghost
    view = _axes.view(shape, axes, ghost, groups)
    assert view.canonical == canonical
    assert view.permutation is None


def test_chunks_need_no_copy() -> None:
    assert _axes.view((6, 5, 3, 4), (1,), 2, 3, True).canonical == (1, 3, 2, 5, 12)
    assert _axes.view((6, 3, 4, 5), (3,), 2, 3, True).canonical == (1, 3, 24, 5, 1)


def test_three_alternations_are_transposed_once() -> None:
    view = _axes.view((2, 3, 4, 5, 6), (0, 2, 4))
    assert view.permutation == (1, 3, 0, 2, 4)
    assert view.canonical == (1, 1, 15, 48, 1)


@st.composite
def views(draw: st.DrawFn) -> tuple[_axes.View, np.ndarray]:
    shape = draw(st.sampled_from(SHAPES))
    sizes = [v for v in (1, 2, 3, 6) if len(shape) > 1 and shape[0] and shape[0] % v == 0]
    ghost = draw(st.none() | st.sampled_from(sizes)) if sizes else None
    axis = draw(axes_of(len(shape), ghost is not None))
    axes = _axes.resolve(axis if isinstance(axis, int) else tuple(axis), len(shape), "test")
    groups = None if ghost is None else shape[0] // ghost
    x = np.arange(np.prod(shape)).reshape(shape)
    return _axes.view(shape, axes, ghost, groups, ghost is not None and draw(st.booleans())), x


def laid_out(view: _axes.View, x: np.ndarray) -> np.ndarray:
    return view.apply(np, x).reshape(view.canonical)


def undone(view: _axes.View, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    return view.undo(np, values.reshape(view.apply(np, x).shape))


@thorough(200)
@given(views())
def test_undo_undoes_apply(case: Any) -> None:
    view, x = case
    np.testing.assert_array_equal(view.undo(np, view.apply(np, x)), x)


@thorough(200)
@given(views())
def test_what_the_view_keeps_is_the_axes_and_the_groups(case: Any) -> None:
    view, x = case
    free = tuple(i for i in range(x.ndim) if i not in view.axes)
    if view.groups is None:
        expected = x.sum(free).reshape(view.row_shape)
    else:
        parts = np.split(x, view.groups)
        if not view.consecutive:
            parts = [x[j :: view.groups] for j in range(view.groups)]
        groups = [part.sum(free).ravel() for part in parts]
        expected = np.array(groups).reshape(view.groups, view.features)
    np.testing.assert_array_equal(laid_out(view, x).sum((0, 2, 4)), expected)


@thorough(200)
@given(views())
def test_weights_are_laid_out_beside_their_values(case: Any) -> None:
    view, x = case
    shape = [1 if i in view.axes else size for i, size in enumerate(x.shape)]
    weights = np.arange(np.prod(shape)).reshape(shape)
    apart = weights if view.groups is None else weights.reshape(*view.split[:2], *shape[1:])
    weighted = view.apply_to_weights(np, apart) * laid_out(view, x)
    np.testing.assert_array_equal(undone(view, weighted, x), weights * x)


@thorough(200)
@given(views())
def test_rows_and_groups_spread_against_the_input(case: Any) -> None:
    view, x = case
    row = np.arange(view.features).reshape(view.row_shape)
    total = laid_out(view, x) + row[None, :, None, :, None]
    np.testing.assert_array_equal(undone(view, total, x), x + view.spread(np, row))
    groups = np.arange(view.groups or 1).reshape(-1, 1)
    total = laid_out(view, x) + groups[None, :, None, :, None]
    np.testing.assert_array_equal(undone(view, total, x), x + view.spread_groups(np, groups))


@pytest.mark.parametrize(
    ("axis", "rank", "axes"),
    [(-1, 1, (0,)), (-1, 4, (3,)), (0, 2, (0,)), ((3, 1), 4, (1, 3)), ((-1, 0), 3, (0, 2))],
)
def test_axes_are_ascending_and_not_negative(axis: Any, rank: int, axes: tuple[int, ...]) -> None:
    assert _axes.resolve(axis, rank, "test") == axes


@pytest.mark.parametrize(
    ("axes", "shape"), [((1,), (3,)), ((1, 3), (1, 3, 1, 5)), ((3,), (5,)), ((0, 1), (2, 3, 1, 1))]
)
def test_parameters_have_one_dimension_for_one_axis_else_the_rank(
    axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    assert _axes.parameter_shape((2, 3, 4, 5), axes) == shape


@pytest.mark.parametrize(
    ("axis", "rank", "message"),
    [
        (-1, 0, "test: the input must have at least one dimension; got a scalar."),
        (2, 2, "test: axis must be in [-2, 1]; got 2 for an input of rank 2."),
        ((0, -3), 2, "test: axis must be in [-2, 1]; got -3 for an input of rank 2."),
        (
            (1, -1),
            2,
            "test: axis must name each dimension once; got [1, -1] for an input of rank 2.",
        ),
    ],
)
def test_axes_that_the_input_lacks_are_refused(axis: Any, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _axes.resolve(axis, rank, "test")


def test_channels_may_be_none_at_all(engine: engines.Engine) -> None:
    state = random_state(np.random.default_rng(0), (0,), {})
    tensors = {name: engine.tensor(value) for name, value in state.items()}
    y, new = batch_norm(engine.tensor(np.zeros((4, 0), "float32")), {}, tensors, training=True)
    assert engine.numpy(y).shape == (4, 0)
    assert engine.numpy(new["moving_mean"]).shape == (0,)
