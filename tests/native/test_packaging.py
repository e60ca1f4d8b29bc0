"""What is installed: three libraries inside the package, of no Python and of no framework."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from batchnorm._native import library
from batchnorm._native.library import path_of
from conftest import REQUESTED

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
        assert path.parent in library.folders_of_libraries()
        assert editable or path.name in listed


@pytest.mark.parametrize("editable", [True, False])
def test_an_editable_installation_of_this_tree_says_where_it_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, editable: bool
) -> None:
    tree = Path(library.__file__).parents[3]
    origin = json.dumps({"url": tree.as_uri(), "dir_info": {"editable": editable}})
    installed = SimpleNamespace(read_text=lambda _: origin, locate_file=tmp_path.joinpath)
    monkeypatch.setattr(library.metadata, "distribution", lambda _: installed)
    here, built = Path(library.__file__).parent, tmp_path / "batchnorm" / "_native"
    expected = (here, built) if editable else (here,)
    assert library.folders_of_libraries() == expected


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
    code = f"import batchnorm\nprint([batchnorm.why_not(name) for name in {REQUESTED!r}])"
    assert python(code, BATCHNORM_KERNELS="require").strip() == str([None] * len(REQUESTED))
