"""The command line: it answers at once, and what it lacks it says in one sentence."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import batchnorm
from batchnorm import __main__, cli
from batchnorm.demo import command as demo

HEAVY = ("keras", "tensorflow", "jax", "torch", "matplotlib", "sklearn", "numpy")
COMMANDS = ("demo", "inspect", "reestimate", "repair", "fold", "explain")


def run(*arguments: str):
    return CliRunner().invoke(cli.app, arguments)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from batchnorm.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.endswith("heavy: []\n")


def test_a_command_is_named_here_and_stands_beside_its_tool():
    """So `cli` has no options of its own."""
    found = {one.callback.__name__: one.callback.__module__ for one in cli.app.registered_commands}
    assert found == dict.fromkeys(COMMANDS, "batchnorm.tools.command") | {
        "demo": "batchnorm.demo.command"
    }


def test_version_is_one_line():
    assert run("--version").output == f"batchnorm {batchnorm.__version__}\n"


@pytest.mark.parametrize("module", __main__.NEEDS)
def test_without_its_extra_the_command_is_one_sentence(module):
    code = (
        f"import runpy, sys\nsys.modules[{module!r}] = None\n"
        "runpy.run_module('batchnorm', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"batchnorm: the command needs {module}, which is not installed. "
        "Run: pip install 'batchnorm[cli]'\n"
    )


def test_the_command_is_a_module_too():
    command = [sys.executable, "-m", "batchnorm", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"batchnorm {batchnorm.__version__}\n"


def test_no_command_shows_the_help():
    assert "Usage" in run().output


def test_an_unknown_backend_names_the_known_ones():
    result = run("demo", "--backend", "mxnet")
    assert result.exit_code == 2
    assert all(name in result.output for name in ("mxnet", "jax", "tensorflow", "torch"))


def test_less_than_one_seed_is_refused():
    assert run("demo", "--seeds", "0").exit_code == 2


@pytest.fixture
def lacking(monkeypatch):
    """Makes modules look as if they were not installed."""

    def lack(*names: str):
        monkeypatch.setattr(
            demo.importlib.util, "find_spec", lambda name: None if name in names else object()
        )

    return lack


def test_a_missing_framework_is_one_sentence_and_the_command_to_run(lacking):
    lacking("torch")
    result = run("demo", "--backend", "torch")
    assert result.exit_code == 1
    assert result.output == (
        "batchnorm demo: --backend must be one whose packages are installed; got 'torch' without "
        "torch. Run: pip install 'batchnorm[torch]'\n"
    )


def test_missing_extras_are_named_together(lacking):
    lacking("jax", "keras", "matplotlib", "sklearn")
    assert run("demo").output == (
        "batchnorm demo: --backend must be one whose packages are installed; got 'jax' without "
        "jax, keras, matplotlib, sklearn. Run: pip install 'batchnorm[jax,keras,demo]'\n"
    )


def test_a_process_whose_keras_runs_on_another_backend_is_told_so(lacking, monkeypatch):
    lacking()
    keras = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "torch"))
    monkeypatch.setitem(sys.modules, "keras", keras)
    assert run("demo", "--backend", "jax").output == (
        "batchnorm demo: --backend must be 'torch', which Keras already uses in this process; "
        "got 'jax'. Start a new process to change it.\n"
    )
