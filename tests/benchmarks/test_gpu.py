"""The question about NVIDIA GPUs, as far as it can be asked without one."""

from __future__ import annotations

import contextlib
import csv
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cases, processes, rows, with_gpu, worker
from benchmarks.questions import gpu
from benchmarks.timing import Times

SETTINGS = cases.Settings("gpu", "torch", cases.FULL, memory="default")


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(with_gpu, "cuts", lambda case, given: {})  # torch has these on GPUs alone


def test_without_a_gpu_it_says_so_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told: list[dict[str, Any]] = []
    worker.measure(gpu, SETTINGS, told.append)
    assert told == [{"said": "gpu: there is no NVIDIA GPU here, so nothing was measured."}]


def test_nobody_asks_for_the_kernels_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With BATCHNORM_KERNELS=require that would be an error where there are none."""
    asked: list[Any] = []
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(gpu, "device", lambda: "a GPU")
    monkeypatch.setattr(gpu, "cases", lambda settings: [])
    monkeypatch.setattr(with_gpu, "DEVICE", "meta")
    monkeypatch.setattr(with_gpu, "why_not_kernels", lambda x: asked.append(x.device.type))
    told: list[dict[str, Any]] = []
    worker.measure(gpu, SETTINGS, told.append)
    assert asked == ["meta"]
    assert told == [{"device": "a GPU"}, {"total": 0}]


def test_every_step_type_layout_and_mode_from_1_mb_to_1_gb() -> None:
    found = gpu.cases(SETTINGS)
    plain = [one for one in found if one.variant == "plain"]
    sizes = sorted({one.size.megabytes(one.dtype) for one in plain if one.what in gpu.WHATS})
    assert (len(sizes), round(sizes[0]), round(sizes[-1])) == (6, 1, 1028)
    assert {one.what for one in plain} == {*gpu.WHATS, gpu.FROM_PYTHON}
    assert len(plain) == len(gpu.WHATS) * 6 * 3 * 2 + 1
    assert {one.dtype for one in found} == {"float32", "float16", "bfloat16"}
    assert {one.variant for one in found} == {"plain", *cases.MODES}
    assert {round(one.size.megabytes(one.dtype)) for one in found if one.variant != "plain"} == {51}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("what", [*gpu.WHATS, gpu.FROM_PYTHON])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_peers_compute_what_ours_computes(what: str, layout: str) -> None:
    case = cases.Case(what, cases.size("6x4x5x3"), "float32", layout)
    contest = gpu.contest(case, SETTINGS)
    python = what == gpu.FROM_PYTHON
    assert set(contest.peers) == {"torch", *([] if python else ["torch, without cuDNN"])}
    wanted = _flat(contest.ours["ours"](), what)
    for name, peer in contest.peers.items():
        for one, other in zip(_flat(peer(), what), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
    if python:
        return
    copied = contest.units["copy"]()
    assert copied.shape == (6, 4, 5, 3)
    assert copied.is_contiguous(memory_format=_order(layout))


def _order(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "last" else torch.contiguous_format


def _flat(result: Any, what: str) -> list[np.ndarray]:
    """y, the gradients, or both."""
    if what in ("forward", "inference"):
        result = result[0]
    leaves = torch.utils._pytree.tree_leaves(result)
    return [one.detach().numpy() for one in leaves]


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("mode", cases.MODES)
def test_a_mode_is_measured_over_plain_normalization(mode: str) -> None:
    case = cases.Case("forward + backward", cases.size("16x4x5x3"), "float32", "first", mode)
    contest = gpu.contest(case, SETTINGS)
    assert set(contest.units) == {"ours, plain"}
    for call in (*contest.ours.values(), *contest.units.values()):
        y, slopes = call()
        assert y.shape == (16, 4, 5, 3)
        assert len(slopes) == 3


def test_the_clock_is_the_device_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many replays between two marks as fill two milliseconds, and one before them."""
    called = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1

        def record(self) -> None:
            self.at = len(called)

        def synchronize(self) -> None:
            called.append("waited")

        def elapsed_time(self, end: Any) -> float:
            return 0.5 * (end.at - self.at)  # milliseconds a call

    class Graph:
        def replay(self) -> None:
            called.append("replayed")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    measure = with_gpu.clock(lambda: called.append("call"))
    assert called[:4] == ["call"] * 4  # three to warm up, and one is captured
    called.clear()
    assert measure() == pytest.approx(0.5e-3)
    assert called == ["replayed"] * 5 + ["waited"]


def test_what_python_takes_is_timed_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("waited"))
    measure = with_gpu.clock(with_gpu.FromPython(lambda: called.append("call")))
    called.clear()
    assert measure() > 0
    assert called == ["waited", *["call"] * 50, "waited"]


def test_rows_carry_the_device_s_name(tmp_path: Any) -> None:
    times = {"ours": Times(1.0, 1.0), "copy": Times(2.0, 2.0)}
    case = cases.Case("forward", cases.size("6x4x5x3"), "float32", "first")
    row = rows.compare(SETTINGS, case, times, "ours", "copy", over=True)
    processes.write(tmp_path, {"gpu": [row]}, {"cpu": "a processor"}, {"gpu": "a GPU"})
    with (tmp_path / "gpu.csv").open() as file:
        assert [line["cpu"] for line in csv.DictReader(file)] == ["a GPU"]
