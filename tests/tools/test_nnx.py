"""nnx modules, flax's and ours, under the tools: one more framework behind the same seam."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import batchnorm
from batchnorm.flax import BatchNorm

X = np.random.default_rng(0).normal(5, 2, (64, 3)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, kind: Any = BatchNorm, **options: Any) -> None:
        rngs = nnx.Rngs(0)
        self.first = kind(3, rngs=rngs, **options)
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = kind(4, rngs=rngs, **options)

    def __call__(self, x: Any) -> Any:
        return self.last(self.drop(jax.nn.relu(self.dense(self.first(x)))))


both = pytest.mark.parametrize("kind", [nnx.BatchNorm, BatchNorm], ids=["flax", "ours"])


def everything(model: Any) -> Any:
    state = nnx.to_pure_dict(nnx.state(model))
    modes = [vars(one).get("use_running_average") for _, one in nnx.iter_modules(model)]
    return jax.tree.map(
        lambda one: (
            np.asarray(jax.random.key_data(one))
            if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key)
            else np.asarray(one)
        ),
        state,
    ), modes


@both
def test_re_estimated_statistics_are_those_of_the_data(kind: Any) -> None:
    model = Net(kind)
    model.train()
    batchnorm.reestimate(model, X, layer_by_layer=True)
    np.testing.assert_allclose(model.first.mean[...], X.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(model.first.var[...], X.var(0, dtype=np.float64), rtol=1e-5)
    model.eval()
    y = jax.nn.relu(model.dense(model.first(X)))
    np.testing.assert_allclose(model.last.var[...], np.asarray(y).var(0), rtol=1e-4)
    assert batchnorm.inspect(model, X, batch_size=64).alarms("error") == []


@both
def test_inspect_leaves_the_model_as_it_was_and_its_class_too(kind: Any) -> None:
    model = Net(kind)
    model.train()
    before, call = everything(model), kind.__call__
    report = batchnorm.inspect(model, X, batch_size=32)
    after = everything(model)
    jax.tree.map(np.testing.assert_array_equal, after[0], before[0])
    assert after[1] == before[1]
    assert kind.__call__ is call
    assert [row.layer for row in report.rows] == ["first", "last"]
    assert report.alarms("error")  # the statistics are still the initial ones


@pytest.mark.parametrize("options", [{}, {"renorm": True, "zero_debias": "both"}], ids=str)
def test_a_poisoned_channel_is_repaired_in_everything_that_is_remembered(options: Any) -> None:
    model = Net(**options)
    stats = [v for _, v in nnx.iter_graph(model.first) if isinstance(v, nnx.BatchStat)]
    for one in stats:
        if one[...].ndim and one[...].dtype == np.float32:
            one[...] = one[...].at[1].set(np.nan)
    assert batchnorm.repair(model, X).still == ()
    assert all(np.isfinite(one[...]).all() for one in stats)
    np.testing.assert_allclose(model.first.mean[...], X.mean(0, np.float64), rtol=1e-5)


def test_statistics_of_ours_freeze_and_thaw() -> None:
    model = Net()
    model.train()
    assert batchnorm.freeze(model, "statistics") == ["first", "last"]
    model.train()
    before = np.asarray(model.first.mean[...])
    model(X)
    np.testing.assert_array_equal(model.first.mean[...], before)
    batchnorm.unfreeze(model, "statistics")
    model(X)
    assert (np.asarray(model.first.mean[...]) != before).all()


@pytest.mark.parametrize(
    ("kind", "what", "message"),
    [
        (
            nnx.BatchNorm,
            "statistics",
            "freeze: BatchNorm 'first' must be a batchnorm.flax.BatchNorm, which has options for "
            "it; got flax's own, whose train() undoes whatever was set.",
        ),
        (
            BatchNorm,
            "both",
            "freeze: what must be 'statistics' for nnx modules; got 'both'. Which parameters are "
            "trained is said to nnx.grad and nnx.Optimizer: wrt=nnx.All(nnx.Param, ...).",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(kind: Any, what: str, message: str) -> None:
    with pytest.raises(ValueError, match="freeze") as caught:
        batchnorm.freeze(Net(kind), what)
    assert str(caught.value) == message


def test_explain_says_what_a_call_will_do() -> None:
    assert batchnorm.explain(nnx.BatchNorm(3, rngs=nnx.Rngs(0))) == (
        "With use_running_average=False it normalizes with the batch's own statistics and updates "
        "the moving ones. With use_running_average=True it normalizes with the moving statistics "
        "and leaves them alone. Now that is False; train(), eval() and each call may say "
        "otherwise. Gamma and beta are trained. It runs on flax's own operations. Not on our fused "
        "kernels: flax's own module does not take them; batchnorm.flax.BatchNorm does."
    )
    words = batchnorm.explain(BatchNorm(3, statistics="moving", rngs=nnx.Rngs(0)))
    assert "With use_running_average=False it normalizes with the moving statistics" in words


def test_fold_refuses_nnx_in_words() -> None:
    with pytest.raises(TypeError) as caught:
        batchnorm.fold(Net())
    assert str(caught.value) == (
        "fold: model must be a Keras model or a PyTorch module; got an nnx module. Nothing tells "
        "which layer's output reaches which: multiply its kernels by hand."
    )
