"""Synchronized batch normalization under DistributedDataParallel, and when a process dies."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import launcher
import replicated


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    return launcher.launch("torch_ddp", 2, tmp_path_factory.mktemp("ddp"), "train")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process makes of all the rows."""
    sys.path.insert(0, str(Path(replicated.__file__).parent / "workers"))
    try:
        return importlib.import_module("torch_ddp").steps(0, 1)
    finally:
        sys.path.pop(0)


def assert_equal(rank: dict[str, Any], alone: dict[str, Any]) -> None:
    for name, wanted in alone.items():
        if wanted is None:
            assert rank[name] is None, name
        else:
            # sums of products cancel: what is left is exact to the largest of them
            atol = 1e-5 * max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(rank[name], wanted, rtol=1e-5, atol=atol, msg=name)


def test_two_forwards_then_one_backward_are_those_of_one_process(ranks, alone) -> None:
    for rank in ranks:
        assert_equal(rank["two forwards"], alone["two forwards"])


def test_gradients_accumulate_without_synchronization_of_parameters(ranks, alone) -> None:
    for rank in ranks:
        assert_equal(rank["no_sync"], alone["no_sync"])


def test_unused_parameters_have_no_gradient_and_nothing_waits_for_them(ranks) -> None:
    assert all(rank["no_sync"]["d unused.vectors.gamma"] is None for rank in ranks)


def test_a_rank_that_dies_ends_the_others_with_an_error_within_the_timeout(tmp_path) -> None:
    started = time.monotonic()
    processes = launcher.start("torch_ddp", 2, tmp_path, "die")
    outputs = launcher.finish(processes, timeout=60)
    assert processes[1].returncode == 7
    assert processes[0].returncode not in (0, None)
    assert "RuntimeError" in outputs[0]
    assert time.monotonic() - started < 40
    assert not list(tmp_path.glob("*.pickle"))
