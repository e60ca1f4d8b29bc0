"""What is decided before a number is seen: the rule, the plan as a value, and that it is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import batchnorm
import engines
from batchnorm._options import Options
from batchnorm._plan import KEPT, Plan, decide, plan

X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype("float32")


def planned(engine: engines.Engine, training: bool = True, weighted: bool = False, **options: Any):
    return plan(engine.ops, Options(**options), engine.tensor(X), training, weighted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("update", ["auto", True, False])
@pytest.mark.parametrize("statistics", ["auto", "batch", "moving"])
def test_two_switches_and_training_decide(statistics: Any, update: Any, training: bool) -> None:
    batch = {"auto": training, "batch": True, "moving": False}[statistics]
    remembered = {"auto": training, True: True, False: False}[update]
    assert decide(statistics, update, training) == (batch, remembered)


@pytest.mark.parametrize(
    ("options", "weighted", "way"),
    [
        ({}, False, "at once"),
        ({"virtual_batch_size": 2}, False, "at once"),
        ({"zero_debias": "both"}, False, "at once"),
        ({"renorm": True}, False, "apart"),
        ({}, True, "apart"),
        ({"statistics": "moving"}, False, "affine"),
    ],
)
def test_the_way_follows_from_the_options(
    engine: engines.Engine, options: Any, weighted: bool, way: str
) -> None:
    assert planned(engine, True, weighted, **options).way == way
    inference = planned(engine, False, weighted, **options)
    assert (inference.way, inference.batch, inference.update) == ("affine", False, False)


def test_a_plan_says_how_x_is_laid_out(engine: engines.Engine) -> None:
    ghosts = planned(engine, virtual_batch_size=2)
    assert ghosts.view.canonical == (2, 3, 4, 3, 1)
    assert ghosts.whole.canonical == (1, 1, 24, 3, 1)
    assert planned(engine, axis=1).view.canonical == (6, 1, 1, 4, 3)
    assert (ghosts.vectors, ghosts.dtype, ghosts.filled) == ((3,), "float32", True)
    assert ghosts.needed == ("moving_mean", "moving_variance")


def test_a_plan_can_be_read(engine: engines.Engine) -> None:
    assert repr(planned(engine, fused=False, axis=1, momentum=0.9, renorm=True)) == (
        "Plan(way='apart', batch=True, update=True, kernels=False, reason='fused is False.', "
        "shape=(6, 4, 3), axes=(1,), dtype='float32', "
        "options=(axis=1, momentum=0.9, renorm=True, fused=False))"
    )


def test_a_plan_does_not_change(engine: engines.Engine) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        planned(engine).batch = False  # type: ignore[misc]


def test_the_same_call_is_planned_once(engine: engines.Engine) -> None:
    options, x = Options(), engine.tensor(X)
    first = plan(engine.ops, options, x, True, False)
    assert isinstance(first, Plan)
    assert plan(engine.ops, options, engine.tensor(X + 1), True, False) is first
    for other in (
        plan(engine.ops, options, x, False, False),
        plan(engine.ops, options, x, True, True),
        plan(engine.ops, options, x[:4], True, False),
        plan(engine.ops, options, engine.tensor(X, "float16"), True, False),
    ):
        assert other is not first


def test_a_plan_belongs_to_one_framework() -> None:
    """The same options and shape on all of them: what is kept for one serves no other."""
    options = Options()
    found = [plan(one.ops, options, one.tensor(X), True, False) for one in engines.ENGINES.values()]
    assert len({id(one) for one in found}) == len(found)
    for one in engines.ENGINES.values():
        x = one.tensor(X)
        y, _ = batchnorm.batch_norm(x, *batchnorm.init(x), training=True)
        np.testing.assert_allclose(one.numpy(y).mean((0, 1)), 0, atol=1e-6)


def test_plans_of_many_shapes_are_not_kept_for_ever(engine: engines.Engine) -> None:
    options = Options()
    for size in range(KEPT + 5):
        plan(engine.ops, options, engine.tensor(np.zeros((size + 1, 2), "float32")), True, False)
    assert 0 < len(options.plans) <= KEPT


def test_calls_of_the_function_share_their_options(engine: engines.Engine) -> None:
    """What equals an option but is of another type is still refused."""
    x = engine.tensor(X)
    parameters, state = batchnorm.init(x)
    for _ in range(2):
        batchnorm.batch_norm(x, parameters, state, training=True, renorm=False)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message follows
        batchnorm.batch_norm(x, parameters, state, training=True, renorm=0)  # type: ignore[arg-type]
    assert str(caught.value) == "batch_norm: renorm must be one of True, False; got 0."
