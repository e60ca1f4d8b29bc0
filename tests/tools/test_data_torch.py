"""Data as people have it for PyTorch modules: several arguments, dictionaries, nested batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import batchnorm

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(5, 2, (12, 3)).astype(np.float32)
Z = RANDOM.normal(-1, 1, (12, 3)).astype(np.float32)
LABELS = np.zeros(12)


class Two(torch.nn.Module):
    """Two inputs, an option and one normalization of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x, other, factor=1.0):
        return self.norm(x + factor * other)


class Nested(torch.nn.Module):
    """One argument, which holds several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, inputs):
        first, (second,) = inputs["pair"] if isinstance(inputs, dict) else inputs
        return self.norm(first + second)


class Everything(Two):
    """Takes by name whatever there is."""

    def forward(self, x, **others):
        return self.norm(x + others["other"])


TWO = {
    "tuple": (X, Z),
    "labels": (X, Z, LABELS),
    "pair and labels": ([X, Z], LABELS),
    "batches of tuples": [(X[:5], Z[:5]), (X[5:], Z[5:])],
    "batches of lists with labels": [[X[:5], Z[:5], LABELS[:5]], [X[5:], Z[5:], LABELS[5:]]],
    "batches of nested tuples": [((X[:5], Z[:5]), LABELS[:5]), ((X[5:], Z[5:]), LABELS[5:])],
    "dictionary": {"x": X, "other": Z, "labels": LABELS},
    "batches of dictionaries": [{"other": Z[:5], "x": X[:5]}, {"x": X[5:], "other": Z[5:]}],
    "dictionary and labels": ({"x": X, "other": Z}, LABELS),
}


@pytest.mark.parametrize("data", TWO.values(), ids=TWO)
def test_as_many_arguments_reach_forward_as_it_asks_for(data):
    """They were one argument: a TypeError inside the user's module."""
    model = Two()
    batchnorm.reestimate(model, data)
    np.testing.assert_allclose(model.norm.running_mean, (X + Z).mean(0), rtol=1e-5)
    assert batchnorm.inspect(model, data).alarms("error") == []


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, torch.compile], ids=["parallel", "compile"]
)
def test_wrappers_are_seen_through(wrap):
    model = Two()
    batchnorm.reestimate(wrap(model), (X, Z))
    np.testing.assert_allclose(model.norm.running_mean, (X + Z).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Nested(), [{"pair": (X, [Z])}]),
        (Nested(), [((X, (Z,)), LABELS)]),
        (Everything(), {"x": X, "other": Z}),
    ],
)
def test_nested_batches_keep_their_form(model, data):
    batchnorm.reestimate(model, data)
    np.testing.assert_allclose(model.norm.running_mean, (X + Z).mean(0), rtol=1e-5)


def test_a_loader_of_dictionaries_is_data():
    items = [{"x": x, "other": z, "label": 0} for x, z in zip(X, Z, strict=True)]
    model = Two()
    batchnorm.reestimate(model, torch.utils.data.DataLoader(items, batch_size=5))
    np.testing.assert_allclose(model.norm.running_mean, (X + Z).mean(0), rtol=1e-5)


def test_a_function_calls_the_model_where_nothing_else_fits():
    def call(model, batch):
        assert batch["names"][0] == "a"
        return model(batch["rest"][0], factor=2.0, other=batch["rest"][1])

    batches = [{"names": "abc", "rest": (X, Z)}]
    model = Two()
    batchnorm.reestimate(model, batches, call=call)
    np.testing.assert_allclose(model.norm.running_mean, (X + 2 * Z).mean(0), rtol=1e-5)
    assert batchnorm.inspect(model, batches, call=call).alarms("error") == []
    model.norm.running_var.fill_(np.nan)
    assert batchnorm.repair(model, batches, call=call).still == ()
    folded = batchnorm.fold(model, batches, call=lambda m, b: m(*b["rest"]))
    assert folded.folding.difference == 0


def test_an_array_is_cut_for_the_users_function_too():
    seen = []

    def call(model, batch):
        seen.append(batch[0].shape)
        return model(*batch)

    batchnorm.reestimate(Two(), (X, Z), batch_size=5, call=call)
    assert seen == [(5, 3), (5, 3), (2, 3)]


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (X, "one ndarray"),
        ([(X,)], "a tuple of 1"),
        ({"x": X}, "a dictionary of x"),
    ],
)
def test_too_few_arguments_are_named(data, got):
    with pytest.raises(TypeError) as raised:
        batchnorm.inspect(Two(), data)
    assert str(raised.value) == (
        "inspect: data must hold what Two.forward asks for (x, other) in each batch; got "
        f"{got}. Pass batches of tuples or dictionaries, or call=, a function of the model and a "
        "batch."
    )


def test_call_must_be_a_function():
    with pytest.raises(TypeError, match="call must") as raised:
        batchnorm.inspect(Two(), (X, Z), call="model")
    assert str(raised.value) == (
        "inspect: call must be a function of the model and a batch; got 'model'."
    )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda one: torch.jit.trace(one.eval(), X_)])
@pytest.mark.parametrize("inside", [False, True])
def test_scripted_and_traced_modules_are_refused_by_name(make, inside):
    """They had "no batch normalization"."""
    made = make(torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
    model = torch.nn.Sequential(made) if inside else made
    for tool in (batchnorm.inspect, batchnorm.reestimate, batchnorm.fold):
        with pytest.raises(TypeError, match="scripted or traced") as raised:
            tool(model, X)
        what = "'0' in it, " if inside else ""
        assert str(raised.value) == (
            f"{tool.__name__}: model must be a module of Python's; got {what}Sequential that was "
            "scripted or traced. Pass the module that it was made from."
        )


X_ = torch.as_tensor(X)
