"""Every block of Python in README.md and docs/ runs, one after the other, on every backend it fits.

docs/moving-from-tf1.md has a test of its own, beside the functions that it is about.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import networks
import pages

# page -> what it takes for granted
FRAMEWORKS = {
    "docs/install.md": (),
    "docs/moving-from-flax.md": (),
    "docs/moving-from-torch.md": ("torchvision", "replicas"),
    "docs/distributed.md": ("replicas",),
}
KERAS = ("README.md", "docs/choosing.md", "docs/keras.md")  # on the Keras backend of the process
ELSEWHERE = ("docs/moving-from-tf1.md", "docs/tools.md")


@contextlib.contextmanager
def granted(what: Sequence[str]) -> Iterator[None]:
    """A torchvision that imports, and a process group of one process."""
    if "torchvision" in what:
        networks.torchvision()
    if "replicas" in what:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        if "replicas" in what:
            dist.destroy_process_group()


@pytest.mark.parametrize("page", FRAMEWORKS)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with granted(FRAMEWORKS[page]):
        assert pages.run(pages.ROOT / page, {"__name__": "page"})


@pytest.mark.keras
@pytest.mark.parametrize("page", KERAS)
def test_the_blocks_of_a_page_run_on_this_backend(
    page: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pages.run(pages.ROOT / page, {"__name__": "page"}) > 2


def test_no_page_with_blocks_is_forgotten() -> None:
    found = {
        page.relative_to(pages.ROOT).as_posix()
        for page in (*pages.ROOT.glob("*.md"), *(pages.ROOT / "docs").rglob("*.md"))
        if pages.blocks(page)
    }
    assert found == {*FRAMEWORKS, *KERAS, *ELSEWHERE}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = (pages.ROOT / "mkdocs.yml").read_text()
    names = {page.name for page in (pages.ROOT / "docs").glob("*.md")}
    assert not {name for name in names if not re.search(rf"[ :]{re.escape(name)}$", site, re.M)}


def test_the_reference_has_every_public_name() -> None:
    """As the site's hook finds them: without importing anything of ours."""
    hooks = pages.module(pages.ROOT / "docs" / "hooks.py")
    for module in hooks.MODULES:
        if module != "batchnorm.tf1":
            imported = importlib.import_module(module)
            names = {f"{module}.{name}" for name in imported.__all__ if name != "__version__"}
            assert names <= set(hooks.public_names(module))
