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
import pages
from conftest import REQUESTED

MISTAKES = Path(__file__).parent / "mistakes.py"
EVERYTHING = Path(__file__).parent / "everything.py"
SOURCE = Path(batchnorm.__file__).parent


@pytest.mark.slow
def test_mypy_finds_every_mistake_and_nothing_else(tmp_path):
    if not {"jax", "tensorflow", "torch"} <= set(REQUESTED):
        pytest.skip("BATCHNORM_TEST_BACKENDS does not request all three")
    lines = MISTAKES.read_text().splitlines()
    expected = {
        (number, found[1])
        for number, line in enumerate(lines, 1)
        if (found := re.search(r"  # ([a-z-]+)$", line))
    }
    output = mypy(tmp_path / "cache", MISTAKES, EVERYTHING)
    found = re.findall(r"^mistakes\.py:(\d+): error: .*\[([a-z-]+)\]$", output, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == expected, output
    assert len(found) == len(expected) == 29
    assert "everything.py" not in output, output


def mypy(cache: Path, *files: Path) -> str:
    """What mypy says of a user's files, without our configuration."""
    environment = dict(os.environ)
    if SOURCE.parent.name == "src":  # not installed: a source tree
        environment["MYPYPATH"] = str(SOURCE.parent)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull]
    command += ["--disable-error-code", "import-untyped", "--cache-dir", str(cache)]
    done = subprocess.run(
        [*command, *(file.name for file in files)], cwd=MISTAKES.parent, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_file_of_everything_names_every_public_name():
    """Those that the reference has; a result is used where it is returned."""
    hooks = pages.module(pages.ROOT / "docs" / "hooks.py")
    names = {name for module in hooks.MODULES for name in hooks.public_names(module)}
    nodes = ast.walk(ast.parse(EVERYTHING.read_text()))
    used = {ast.unparse(one) for one in nodes if isinstance(one, ast.Attribute)}
    assert len(names) >= 40
    assert not names - used


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
