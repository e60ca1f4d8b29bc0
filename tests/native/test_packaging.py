"""What is installed: three libraries inside the package, of no Python and of no framework."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from batchnorm._native import library
from batchnorm._native.library import path_of

LIBRARIES = ("libbatchnorm_kernels", "libbatchnorm_jax", "libbatchnorm_tensorflow")


def test_the_libraries_lie_in_the_installed_package() -> None:
    """Where `BATCHNORM_KERNELS=require` finds them; an editable installation says where it is."""
    installed = metadata.distribution("batchnorm")
    listed = {Path(str(file)).name for file in installed.files or []}
    editable = "direct_url.json" in listed and "editable" in (
        installed.read_text("direct_url.json") or ""
    )
    for stem in LIBRARIES:
        path = path_of(stem)
        assert path.parent == Path(library.__file__).parent
        assert editable or path.name in listed


def test_the_wheel_is_of_no_python_version() -> None:
    tags = metadata.distribution("batchnorm").read_text("WHEEL") or ""
    assert "Tag: py3-none-" in tags


@pytest.mark.parametrize("stem", LIBRARIES)
def test_nothing_but_the_system_is_linked(stem: str) -> None:
    if sys.platform != "linux":
        pytest.skip("readelf is Linux'")
    path = path_of(stem)
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    needed = {
        line.split("[")[1].rstrip("]") for line in dynamic.stdout.splitlines() if "NEEDED" in line
    }
    system = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
    system |= {"ld-linux-aarch64.so.1", "libbatchnorm_kernels.so"}
    assert needed <= system


def test_require_is_met(python: Callable[..., str]) -> None:
    code = "import batchnorm\nprint([batchnorm.why_not(n) for n in ('torch', 'jax')])"
    assert python(code, BATCHNORM_KERNELS="require").strip() == "[None, None]"
