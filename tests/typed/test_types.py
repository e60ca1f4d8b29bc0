"""What a user's type checker sees: mypy with the frameworks, and without our configuration."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import batchnorm
from conftest import REQUESTED

MISTAKES = Path(__file__).parent / "mistakes.py"
SOURCE = Path(batchnorm.__file__).parent


@pytest.mark.slow
def test_mypy_finds_every_mistake_and_nothing_else(tmp_path):
    if not {"jax", "torch"} <= set(REQUESTED):
        pytest.skip("BATCHNORM_TEST_BACKENDS does not request jax and torch")
    lines = MISTAKES.read_text().splitlines()
    expected = {
        (number, found[1])
        for number, line in enumerate(lines, 1)
        if (found := re.search(r"  # ([a-z-]+)$", line))
    }
    environment = dict(os.environ)
    if SOURCE.parent.name == "src":  # not installed: a source tree
        environment["MYPYPATH"] = str(SOURCE.parent)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    command += ["--disable-error-code", "import-untyped", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, MISTAKES.name], cwd=MISTAKES.parent, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^mistakes\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == expected, done.stdout + done.stderr
    assert len(found) == len(expected) == 29


def test_the_package_says_that_it_is_typed():
    assert (SOURCE / "py.typed").exists()


def test_what_is_imported_later_is_imported_for_type_checkers():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = (one for one in tree.body if ast.unparse(one).startswith("if TYPE_CHECKING:"))
    told = {
        alias.name: one.module.removeprefix("batchnorm.")
        for one in block.body
        for alias in one.names
    }
    assert told == batchnorm._LATER


def test_dir_shows_the_public_names():
    assert set(batchnorm.__all__) <= set(dir(batchnorm))


def test_a_misspelt_name_is_an_error():
    with pytest.raises(AttributeError, match=r"^module 'batchnorm' has no attribute 'inspekt'$"):
        _ = batchnorm.inspekt
