"""What the commands write: everything that was in the file, and never half of it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import batchnorm
from batchnorm import cli
from batchnorm.tools import saving
from tool_models import dense, rows

pytestmark = pytest.mark.keras

X = rows(64)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@keras.saving.register_keras_serializable(package="tests")
class Loss(keras.losses.MeanSquaredError):
    """A loss of the user's own: who loads a file need not know it."""


def trained() -> keras.Model:
    model = dense("ours")
    model.compile(keras.optimizers.Adam(0.01), Loss(), metrics=["mae"])
    model.fit(X, np.zeros((64, 3), np.float32), epochs=2, batch_size=16, verbose=0)
    return model


@pytest.fixture
def files(tmp_path):
    """A folder with a model in the middle of its training, and data."""
    model = trained()
    model.get_layer("second").moving_variance.assign(np.full(7, np.nan))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    return tmp_path


COMMANDS = {
    "reestimate": ("--data", "x.npy", "--batch-size", "64"),
    "repair": ("--data", "x.npy"),
}


@pytest.mark.parametrize("onto_itself", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
def test_optimizer_and_compilation_are_kept(files, monkeypatch, command, onto_itself):
    monkeypatch.chdir(files)
    before = keras.models.load_model("model.keras")
    out = "model.keras" if onto_itself else "new.keras"
    os.chmod("model.keras", 0o640)
    result = run(command, "model.keras", *COMMANDS[command], "--out", out)
    assert result.exit_code == 0, result.output
    after = keras.models.load_model(out)
    assert type(after.loss) is Loss
    assert int(after.optimizer.iterations.value) == 8
    assert len(after.optimizer.variables) > 2
    for one, other in zip(after.optimizer.variables, before.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one.value, other.value)))
    fixed = {one.path for layer in before.layers for one in layer.trainable_variables}
    for one, other in zip(after.variables, before.variables, strict=True):
        if other.path in fixed:
            np.testing.assert_array_equal(
                *map(keras.ops.convert_to_numpy, (one.value, other.value))
            )
    second = keras.ops.convert_to_numpy(after.get_layer("second").moving_variance.value)
    assert np.isfinite(second).all()
    expected = keras.models.load_model("model.keras")
    if not onto_itself:
        batchnorm.reestimate(expected, X, batch_size=64)
    if command == "reestimate":
        np.testing.assert_allclose(after.predict(X, verbose=0), expected.predict(X, verbose=0))
    after.fit(X, np.zeros((64, 3), np.float32), verbose=0)
    if onto_itself:
        assert stat.S_IMODE(Path(out).stat().st_mode) == 0o640
    assert sorted(one.name for one in files.iterdir()) == sorted({"model.keras", "x.npy", out})


def test_a_loss_that_is_not_known_here_is_kept(files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.delitem(keras.saving.get_custom_objects(), "tests>Loss")
    assert run("repair", "model.keras", "--out", "new.keras").exit_code == 0
    with keras.saving.custom_object_scope({"tests>Loss": Loss}):
        assert type(keras.models.load_model("new.keras").loss) is Loss


def test_fold_says_what_it_cannot_keep(files, monkeypatch):
    monkeypatch.chdir(files)
    run("repair", "model.keras", "--out", "model.keras")
    result = run("fold", "model.keras", "--out", "new.keras")
    assert result.exit_code == 0
    assert result.output.endswith(
        "Wrote new.keras.\nIt is for inference: the optimizer and the compilation of MODEL are not "
        "in it.\n"
    )
    assert "optimizer" not in run("fold", "new.keras", "--out", "again.keras").output


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_file_that_cannot_keep_them_says_so(files, monkeypatch):
    monkeypatch.chdir(files)
    keras.models.load_model("model.keras").save("old.h5")
    result = run("repair", "old.h5", "--unsafe", "--out", "new.keras")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(
        "Wrote new.keras.\nThe optimizer and the compilation of MODEL are not in it: only .keras "
        "files keep them.\n"
    )


@pytest.mark.parametrize("command", ["reestimate", "repair", "fold"])
def test_the_place_of_the_new_file_is_checked_before_the_work(files, monkeypatch, command):
    monkeypatch.chdir(files)
    (files / "folder").mkdir()
    (files / "closed.keras").touch()
    allowed = os.access

    def access(path, mode):
        return not (mode & os.W_OK and Path(path).stem == "closed") and allowed(path, mode)

    monkeypatch.setattr(saving.os, "access", access)
    cases = {
        "none/new.keras": "--out must be in a folder that is there; got 'none/new.keras'. Make the "
        "folder first.",
        "folder": "--out must be a file; got the folder 'folder'.",
        "closed.keras": "--out must be a file that may be written; got 'closed.keras', where "
        "'closed.keras' is closed to you.",
        "new.h5": "--out must end in .keras; got 'new.h5'.",
    }
    for out, message in cases.items():
        # data that cannot be read would be the next complaint
        result = run(command, "model.keras", "--out", out, "--data", "none.npy")
        assert (result.exit_code, result.output) == (2, f"batchnorm: {message}\n")


def test_the_places_of_reports_are_checked_before_the_work(files, monkeypatch):
    monkeypatch.chdir(files)
    for option, path, message in (
        (
            "--html",
            "none/a.html",
            "must be in a folder that is there; got 'none/a.html'. Make the folder first.",
        ),
        ("--json", "a.html", "must end in .json; got 'a.html'."),
    ):
        result = run("inspect", "model.keras", "--data", "none.npy", option, path)
        assert (result.exit_code, result.output) == (2, f"batchnorm: {option} {message}\n")


def test_a_write_that_is_interrupted_at_any_line_leaves_the_old_file(files):
    """Ctrl-C is an exception between two lines; here it comes once at each that runs."""
    path = files / "model.keras"
    before = path.read_bytes()
    model = keras.models.load_model(path, compile=False)
    model.get_layer("first").moving_mean.assign(np.arange(5.0))

    def interrupting(line: int):
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_filename != saving.__file__:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    raise KeyboardInterrupt
            return trace

        return trace

    lines, left, usual = 0, 0, sys.gettrace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a `with` that was cut off at its end
        while path.read_bytes() == before:
            lines += 1
            sys.settrace(interrupting(lines))
            try:
                with contextlib.suppress(KeyboardInterrupt):
                    saving.save(model, path, path)
            finally:
                sys.settrace(usual)
            for one in files.glob(".*"):  # of a second Ctrl-C, while it tidies up
                one.unlink()
                left += 1
        gc.collect()
    assert lines > 30
    assert left <= 1
    assert keras.models.load_model(path).optimizer.iterations == 8


@pytest.mark.parametrize("where", ["keras.Model.save", "h5py.File", "os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")], ids=repr)
def test_a_command_that_fails_while_it_writes_leaves_the_old_file(files, monkeypatch, where, error):
    monkeypatch.chdir(files)
    before = Path("model.keras").read_bytes()

    def fail(*arguments, **keywords):
        raise error

    module, name = where.rsplit(".", 1)
    holder = {"keras.Model": keras.Model, "os": saving.os}.get(module) or __import__(module)
    with monkeypatch.context() as patch:
        if name == "File":  # while it writes, not while it loads
            patch.setattr(saving, "_merged", fail)
        else:
            patch.setattr(holder, name, fail)
        result = run("repair", "model.keras", "--out", "model.keras")
    assert result.exit_code != 0
    assert Path("model.keras").read_bytes() == before
    assert sorted(one.name for one in files.iterdir()) == ["model.keras", "x.npy"]


def test_a_process_that_gets_a_signal_in_the_middle_leaves_the_old_file(files):
    (files / "my_data.py").write_text(
        "import os, signal\nimport numpy\n\ndef load():\n    x = numpy.load('x.npy')\n"
        # in the background of a shell the signal is ignored
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    yield x\n    os.kill(os.getpid(), signal.SIGINT)\n    yield x\n"
    )
    before = (files / "model.keras").read_bytes()
    code = "import batchnorm.cli; batchnorm.cli.main()"
    command = ("reestimate", "model.keras", "--data", "my_data:load", "--out", "model.keras")
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=files, capture_output=True)
    assert done.returncode in (1, 130, -signal.SIGINT), done.stderr
    assert (files / "model.keras").read_bytes() == before
    assert not [one for one in files.iterdir() if one.name.startswith(".")]
