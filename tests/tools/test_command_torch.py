"""The commands on programs: a function makes the model, most of them PyTorch's."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import batchnorm
from batchnorm import cli
from tool_models import rows

X = rows(64)
PROGRAM = """
import numpy
import torch
from flax import nnx

torch.manual_seed(0)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.dense = torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 7)
        self.second = torch.nn.BatchNorm1d(7)

    def forward(self, left, right):
        return self.second(self.dense(self.first(left + right)))

def build_model():
    return Net()

def one_input():
    return torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 7))

def linear_first():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

def poisoned():
    model = one_input()
    model[0].running_var[2] = float("nan")
    return model

def of_flax():
    return nnx.BatchNorm(5, rngs=nnx.Rngs(0))

def no_model():
    return 3

def broken():
    return [].rows
"""


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a program and data, and in it."""
    (tmp_path / "my_program.py").write_text(PROGRAM)
    np.savez(tmp_path / "two.npz", left=X, right=X, labels=np.zeros(64))
    np.savez(tmp_path / "one.npz", x=X, labels=np.zeros(64))
    np.save(tmp_path / "example.npy", X[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_program", raising=False)
    return tmp_path


def test_a_program_with_several_inputs_is_inspected_and_explained(folder):
    result = run("inspect", "my_program:build_model", "--data", "two.npz", "--json", "report.json")
    assert result.exit_code == 1
    assert "never updated" in result.output
    assert '"never updated"' in (folder / "report.json").read_text()
    lines = run("explain", "my_program:build_model").output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["first", "second"]


def test_a_re_estimated_module_is_saved_as_its_state_dict(folder):
    run_ = ("reestimate", "my_program:one_input", "--data", "one.npz", "--out")
    result = run(*run_, "new.pt", "--batch-size", 64)
    assert result.exit_code == 0, result.output
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 7))
    model.load_state_dict(torch.load("new.pt", weights_only=True))
    np.testing.assert_allclose(model[0].running_mean, X.mean(0), rtol=1e-5)
    assert batchnorm.inspect(model, X, batch_size=64).healthy


def test_a_poisoned_module_is_repaired(folder):
    result = run("repair", "my_program:poisoned", "--data", "one.npz", "--out", "new.pth")
    assert result.exit_code == 0, result.output
    state = torch.load("new.pth", weights_only=True)
    np.testing.assert_allclose(state["0.running_var"], X.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("fold", "my_program:one_input", "--out", "new.pt"),
            "batchnorm: MODEL must be a Keras model to be folded into a file; got Sequential. In "
            "Python, batchnorm.fold(model, data) returns a torch.fx.GraphModule; save it with "
            "torch.export or torch.save.",
        ),
        (
            ("repair", "my_program:one_input", "--out", "new.keras"),
            "batchnorm: --out must end in .pt or .pth; got 'new.keras'.",
        ),
        (
            ("repair", "my_program:of_flax", "--out", "new.pt"),
            "batchnorm: MODEL must be a Keras model or a PyTorch module to be saved; got "
            "BatchNorm. Call the tool in Python, and save the model as you do.",
        ),
        (
            ("explain", "my_program:no_model"),
            "explain: model must be a Keras model, a PyTorch module or an nnx module; got "
            "builtins.int. Import its framework and build the model first.",
        ),
        (
            ("explain", "my_program:nothing"),
            "batchnorm: MODEL must name a function that can be imported; got 'my_program:nothing'. "
            "The module has no such function.",
        ),
        (
            ("explain", "no_such_program:build"),
            "batchnorm: MODEL must name a function that can be imported; got "
            "'no_such_program:build'. No module named 'no_such_program'",
        ),
        (
            ("inspect", "my_program:one_input", "--data", "example.npy"),
            "BatchNorm1d '0': the input must have a batch dimension and channels; got rank 1. One "
            "example needs an axis in front, x[None].",
        ),
        (
            ("inspect", "my_program:linear_first", "--data", "example.npy"),
            "batchnorm: --data must be what the model can be called with; it raised RuntimeError: "
            "mat1 and mat2 shapes cannot be multiplied (1x5 and 4x3). Data are rows of examples: "
            "one example needs an axis in front, x[None].",
        ),
        (
            ("inspect", "my_program:build_model", "--data", "one.npz"),
            "inspect: data must hold what Net.forward asks for (left, right) in each batch; got "
            "one ndarray. Pass batches of tuples or dictionaries, or call=, a function of the "
            "model and a batch.",
        ),
    ],
)
def test_what_a_command_cannot_do_is_one_sentence(folder, arguments, message):
    result = run(*arguments)
    assert (result.exit_code, result.output) == (2, f"{message}\n")


def test_an_error_of_the_program_is_shown_with_its_place(folder):
    result = run("explain", "my_program:broken")
    assert result.exit_code == 2
    assert result.output.startswith(
        "batchnorm: MODEL must name a function that returns a model; got 'my_program:broken', "
        "which raised:\n"
    )
    assert 'my_program.py", line' in result.output
    assert result.output.endswith("AttributeError: 'list' object has no attribute 'rows'\n")
