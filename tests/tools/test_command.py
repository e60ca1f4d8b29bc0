"""The commands: files in, files out, and exit codes that a CI job can use."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import batchnorm
from batchnorm import cli
from tool_models import dense, rows

pytestmark = pytest.mark.keras

X = rows(64)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.fixture
def files(tmp_path):
    """A folder with a sick model, a sound one, and data."""
    sick, sound = dense("ours"), dense("ours")
    batchnorm.reestimate(sound, X, batch_size=64)
    sick.save(tmp_path / "sick.keras")
    sound.save(tmp_path / "sound.keras")
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "pair.npz", x=X, labels=np.zeros(64))
    (tmp_path / "my_data.py").write_text(
        "import numpy\n\ndef load():\n    return numpy.load('x.npy')\n"
    )
    return tmp_path


def test_inspect_fails_on_errors_only_if_asked(files):
    data = ("--data", files / "x.npy", "--batch-size", 64)
    assert run("inspect", files / "sound.keras", *data).exit_code == 0
    result = run("inspect", files / "sick.keras", *data)
    assert result.exit_code == 1
    assert "never updated" in result.output
    assert run("inspect", files / "sick.keras", *data, "--fail-on", "never").exit_code == 0


def test_inspect_writes_page_and_numbers(files):
    out = ("--html", files / "report.html", "--json", files / "report.json")
    run("inspect", files / "sick.keras", "--data", files / "pair.npz", *out)
    assert (files / "report.html").read_text().startswith("<!doctype html>")
    assert '"never updated"' in (files / "report.json").read_text()


def test_reestimate_takes_a_function_and_writes_a_model_that_fits(files, monkeypatch):
    monkeypatch.chdir(files)
    done = run("reestimate", "sick.keras", "--data", "my_data:load", "--out", "new.keras")
    assert done.exit_code == 0
    new = keras.models.load_model("new.keras")
    assert batchnorm.inspect(new, X, batch_size=64).healthy


def test_repair_works_without_data(files):
    result = run("repair", files / "sound.keras", "--out", files / "new.keras")
    assert result.exit_code == 0
    assert "Nothing is poisoned." in result.output


def test_fold_writes_a_model_and_says_how_far_it_is(files):
    result = run(
        "fold", files / "sound.keras", "--data", files / "x.npy", "--out", files / "new.keras"
    )
    assert result.exit_code == 0
    assert "Folded 2, kept 0; outputs differ by" in " ".join(result.output.split())
    new = keras.models.load_model(files / "new.keras")
    assert not any(isinstance(one, keras.layers.BatchNormalization) for one in new.layers)


def test_explain_has_a_line_for_each_layer(files):
    lines = run("explain", files / "sick.keras").output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["first", "second"]


def test_code_in_a_file_is_loaded_only_if_asked(tmp_path):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Lambda(lambda x: x), keras.layers.BatchNormalization()]
    )
    model.save(tmp_path / "code.keras")
    result = run("explain", tmp_path / "code.keras")
    assert result.exit_code == 2
    assert result.output.startswith(
        f"batchnorm: MODEL must be a file that Keras can load; got '{tmp_path / 'code.keras'}'."
    )
    assert run("explain", tmp_path / "code.keras", "--unsafe").exit_code == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def load():\n    return [].rows", "must name a function that returns data"),
        ("def load():\n    import no_such_module", "must name a function that returns data"),
        ("[].rows", "must name a function that can be imported"),
    ],
)
def test_an_error_of_the_users_code_is_shown_with_its_place(files, monkeypatch, code, said):
    """An AttributeError in the function was called a failure to import it."""
    (files / "users_code.py").write_text(code)
    monkeypatch.chdir(files)
    monkeypatch.delitem(sys.modules, "users_code", raising=False)
    result = run("inspect", files / "sick.keras", "--data", "users_code:load")
    assert result.exit_code == 2
    assert result.output.startswith(f"batchnorm: --data {said}; got 'users_code:load'")
    assert f'users_code.py", line {code.count(chr(10)) + 1}' in result.output
    assert "in load_data" not in result.output
    last = result.output.splitlines()[-1]
    assert last.startswith(("AttributeError: 'list' object", "ModuleNotFoundError: No module"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "x.csv",
            "batchnorm: --data must be a .npy or .npz file, or module:function; got 'x.csv'.\n",
        ),
        (
            "no_such_module:load",
            "batchnorm: --data must name a function that can be imported; got "
            "'no_such_module:load'. No module named 'no_such_module'\n",
        ),
        (
            "json:load_all",
            "batchnorm: --data must name a function that can be imported; got 'json:load_all'. The "
            "module has no such function.\n",
        ),
        (
            "none.npy",
            "batchnorm: --data must be a file of plain arrays; got 'none.npy'. [Errno 2] No such "
            "file or directory: 'none.npy'\n",
        ),
    ],
)
def test_data_that_cannot_be_read_is_one_sentence(files, data, message):
    result = run("inspect", files / "sick.keras", "--data", data)
    assert (result.exit_code, result.output) == (2, message)


def test_pickled_arrays_are_never_loaded(files):
    np.save(files / "objects.npy", np.array([{"a": 1}], dtype=object))
    result = run("inspect", files / "sick.keras", "--data", files / "objects.npy")
    assert result.exit_code == 2
    assert "Object arrays cannot be loaded when allow_pickle=False" in result.output


def test_a_broken_file_of_data_is_one_sentence(files):
    np.savez(files / "whole.npz", x=np.ones((8, 5), np.float32))
    whole = (files / "whole.npz").read_bytes()
    for name, content in {"empty.npy": b"", "cut.npz": whole[:-40]}.items():
        (files / name).write_bytes(content)
        result = run("inspect", files / "sick.keras", "--data", files / name)
        assert result.exit_code == 2
        assert result.output.startswith(
            f"batchnorm: --data must be a file of plain arrays; got '{files / name}'. "
        )


def test_an_array_is_data_whatever_its_file_is_called(files):
    (files / "x.npz").write_bytes((files / "x.npy").read_bytes())
    run_ = ("reestimate", files / "sick.keras", "--out", files / "new.keras", "--data")
    assert run(*run_, files / "x.npz").exit_code == 0


def test_a_folder_that_is_not_there_is_one_sentence_and_no_diagnosis(files):
    """Exit code 1 would say that the inspector found something."""
    model, out = files / "sick.keras", files / "none" / "new.keras"
    result = run("repair", model, "--out", out)
    assert result.exit_code == 2
    assert str(out) in result.output
    page = ("--fail-on", "never", "--json", out.with_suffix(".json"))
    assert run("inspect", model, "--data", files / "x.npy", *page).exit_code == 2


def test_a_file_of_another_format_is_loaded_only_if_asked(tmp_path):
    file = tmp_path / "old.h5"
    model = keras.Sequential([keras.Input((5,)), keras.layers.BatchNormalization(name="norm")])
    model.save(file)
    result = run("explain", file)
    assert (result.exit_code, result.output) == (
        2,
        f"batchnorm: MODEL must be a .keras file; got '{file}'. Other formats may run code of "
        "their own while they load: add --unsafe if you trust it.\n",
    )
    assert run("explain", file, "--unsafe").exit_code == 0


def test_a_missing_model_is_one_sentence():
    result = run("explain", "none.keras")
    assert (result.exit_code, result.output) == (
        2,
        "batchnorm: MODEL must be a .keras file; got 'none.keras', which is not there.\n",
    )


@pytest.mark.parametrize("command", ["inspect", "reestimate", "repair", "fold", "explain"])
def test_help_loads_no_framework(command):
    code = (
        "import sys\nfrom batchnorm.cli import app\n"
        f"app(['{command}', '--help'], standalone_mode=False)\n"
        "heavy = {'keras', 'tensorflow', 'jax', 'torch', 'matplotlib', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")


def inputs_of_two() -> keras.Model:
    inputs = [keras.Input((5,), name=name) for name in ("left", "right")]
    return keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.add(inputs)))


@pytest.mark.parametrize(
    ("model", "arrays", "message"),
    [
        (
            "one",
            {"": X[0]},
            "--data must hold rows of shape (5,); got an array of shape (5,). That is one example: "
            "save it with an axis in front, x[None].",
        ),
        (
            "one",
            {"": X[:, :3]},
            "--data must hold rows of shape (5,); got an array of shape (64, 3).",
        ),
        (
            "one",
            {"features": X, "labels": X[:, 0]},
            "--data must hold an array for each input of the model; got features, labels and none "
            "for rows. Save it with np.savez(file, x=...).",
        ),
        (
            "two",
            {"left": X, "labels": X[:, 0]},
            "--data must hold an array for each input of the model; got left, labels and none for "
            "right. Save it with np.savez(file, left=..., right=...).",
        ),
        (
            "two",
            {"left": X, "right": X[0]},
            "--data must hold rows of shape (5,); got right of shape (5,). That is one example: "
            "save it with an axis in front, x[None].",
        ),
        (
            "two",
            {"x": X},
            "--data must hold an array for each of the 2 inputs of the model; got one. Save them "
            "with np.savez(file, name=...) under the names of the inputs.",
        ),
    ],
)
def test_data_of_another_form_is_one_sentence_with_what_to_do(files, model, arrays, message):
    inputs = keras.Input((5,), name="rows")
    one = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    {"one": one, "two": inputs_of_two()}[model].save(files / "model.keras")
    if "" in arrays:
        np.save(files / "data.npy", arrays[""])
    else:
        np.savez(files / "data.npz", **arrays)
    data = files / ("data.npy" if "" in arrays else "data.npz")
    result = run("inspect", files / "model.keras", "--data", data)
    assert (result.exit_code, result.output) == (2, f"batchnorm: {message}\n")


def test_arrays_go_to_the_inputs_of_their_names(files):
    model = inputs_of_two()
    model.save(files / "model.keras")
    np.savez(files / "data.npz", right=X, labels=X[:, 0], left=2 * X)
    out = files / "new.keras"
    assert (
        run(
            "reestimate", files / "model.keras", "--data", files / "data.npz", "--out", out
        ).exit_code
        == 0
    )
    mean = keras.models.load_model(out).layers[-1].moving_mean.value
    np.testing.assert_allclose(keras.ops.convert_to_numpy(mean), 3 * X.mean(0), rtol=1e-5)
