"""docs/moving-from-tf1.md: every block of Python on the page runs, one after the other."""

from __future__ import annotations

import warnings

import pages

PAGE = pages.ROOT / "docs" / "moving-from-tf1.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf_slim's and tf_keras' own
            assert pages.run(PAGE, names) > 5
    finally:
        if patch := names.get("patch"):
            patch.undo()
