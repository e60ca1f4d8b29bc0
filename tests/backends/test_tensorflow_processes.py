"""One batch over processes of TensorFlow: MultiWorkerMirroredStrategy over loopback."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import launcher
import replicated

NAMES = ("plain", "mean 1e4", "mask, weights and axis 1", "ghost, renorm and weights", "bfloat16")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers found."""
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    folder = tmp_path_factory.mktemp("workers")
    return launcher.launch("tensorflow_processes", 2, folder, *ports)


@pytest.mark.parametrize("fused", [False, None], ids=["composite", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_workers_equal_one_process_with_all_the_rows(
    workers: list[dict[str, Any]], name: str, fused: bool | None
) -> None:
    parts = [one["modes"][name, fused] for one in workers]
    replicated.check(replicated.case(name, 2), parts)


def test_workers_that_disagree_in_channels_are_stopped_and_told(
    workers: list[dict[str, Any]],
) -> None:
    """By TensorFlow, which compares the shapes of a collective on the worker that comes first.

    The other mostly hears the same; seen once: that the first could not be reached any more.
    """
    errors = [one["error"] for one in workers]
    for error in errors:
        assert error.startswith(("InvalidArgumentError", "UnavailableError"))
    words = ("Shape mismatch in the collective", "[2,1,10]", "[2,1,13]")
    assert any(all(one in error for one in words) for error in errors), errors
