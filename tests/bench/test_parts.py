"""The parts of `batchnorm bench`; peers compute what ours computes."""

from __future__ import annotations

import ctypes
import dataclasses
import math

import numpy as np
import pytest

from batchnorm.bench import bars, machine, ours, plan, row, timing
from batchnorm.bench.copies import Copier
from batchnorm.bench.engine import engine as measuring
from batchnorm.bench.timing import Times

SETTINGS = plan.Settings("kernels", "", ("32x64",))
CASE = plan.Case("forward", plan.size("64x64x56x56"), "float32", "first")


def a_row(ratio: float, **changes) -> row.Row:
    times = {"ours": Times(ratio, ratio), "copy, ordinary": Times(1.0, 1.0)}
    made = row.compare(SETTINGS, CASE, times, "ours", "copy, ordinary", ours_over_peer=True)
    return dataclasses.replace(made, **changes)


def test_a_size_has_the_same_bytes_in_every_type():
    size = plan.size("64x64x56x56")
    assert size.megabytes("float32") == pytest.approx(51.380224)
    assert str(size.of("bfloat16")) == "128x64x56x56"
    assert size.of("bfloat16").megabytes("bfloat16") == size.megabytes("float32")


def test_a_dense_input_has_one_layout():
    assert plan.size("32x64").layouts(("first", "last")) == ("last",)


def test_only_what_allocates_is_measured_with_every_memory():
    jobs = plan.jobs(
        ("kernels", "frameworks", "small"), ("jax", "tensorflow"), ("default", "huge"), ("3x5",)
    )
    assert [(job.question, job.framework, job.memory) for job in jobs] == [
        ("kernels", "", "default"),
        ("frameworks", "jax", "default"),
        ("frameworks", "jax", "huge"),
        ("frameworks", "tensorflow", "default"),
        ("small", "jax", "default"),
        ("small", "tensorflow", "default"),
    ]


def test_what_synchronizing_costs_is_measured_without_page_faults():
    jobs = plan.jobs(("synchronized",), ("jax", "torch"), ("default",), ("3x5",))
    assert [job.memory for job in jobs] == ["recycled", "recycled"]


def test_contenders_take_turns_forward_and_backward():
    called: list[str] = []
    clocks = {name: lambda name=name: called.append(name) or 0.5 for name in "abc"}
    times = timing.alternate(clocks, 2, 9.0)
    assert "".join(called) == "abccba"
    assert times["a"] == Times(500.0, 500.0)


def test_a_slow_case_stops_after_five_rounds(monkeypatch):
    monkeypatch.setattr(timing, "TOO_LONG", math.inf)
    called: list[str] = []
    timing.alternate({"a": lambda: called.append("a") or 0.5}, 99, 1e-9)
    assert len(called) == 5


def test_a_case_that_takes_far_too_long_stops_after_one_round():
    called: list[str] = []
    timing.alternate({"a": lambda: called.append("a") or 0.5}, 99, 0.0)
    assert len(called) == 1


def test_a_clock_times_the_second_of_two_calls(monkeypatch):
    now, steps = [0.0], iter([0.1, 0.1, 7.0, 0.1])
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(steps)

    assert timing.clock(call)() == pytest.approx(0.1)


def test_every_way_to_copy_copies_everything(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_non_temporal_threshold=0x100000")
    source = np.random.default_rng(1).integers(0, 255, 3_000_001, np.uint8)
    to = np.zeros_like(source)
    with Copier(2) as copier:
        clocks = copier.clocks(to.ctypes.data, source.ctypes.data, source.nbytes)
        assert list(clocks) == ["copy, one thread", "copy, ordinary", "copy, non-temporal"]
        for clock in clocks.values():
            ctypes.memset(to.ctypes.data, 0, to.nbytes)
            assert clock() > 0
            np.testing.assert_array_equal(to, source)


def test_a_bar_is_about_its_own_rows_only():
    assert str(bars.bar_of(a_row(1.2))) == "<= 1.3"
    assert bars.bar_of(a_row(1.2, dtype="bfloat16")) is None
    assert bars.bar_of(a_row(1.2, megabytes=6.4)) is None
    assert str(bars.bar_of(a_row(1.2, layout="last"))) == "<= 1.65"


def test_a_verdict_names_the_worst_row():
    (verdict,) = bars.verdicts([a_row(1.25), a_row(1.6), a_row(9.0, megabytes=1.0)])
    assert str(verdict) == (
        "forward channels-first, over copy <= 1.3: missed, 1 of 2 rows, worst 1.60, "
        "geometric mean 1.41"
    )


def test_a_geometric_mean_is_part_of_its_bar():
    changes = {
        "question": "frameworks",
        "framework": "tensorflow",
        "what": "forward + backward",
        "layout": "last",
        "peer": "TF fused",
    }
    (verdict,) = bars.verdicts([a_row(0.96, **changes), a_row(1.0, **changes)])
    assert not verdict.met
    assert "met, 2 of 2" not in str(verdict)
    (verdict,) = bars.verdicts([a_row(0.96, **changes), a_row(1.3, **changes)])
    assert verdict.met


def test_rows_survive_their_file(tmp_path):
    path = tmp_path / "rows.csv"
    row.write(path, [a_row(1.5)], {"cpu": "a, b"})
    assert row.read([path]) == [(a_row(1.5, megabytes=51.38), {"cpu": "a, b"})]


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.busy(0.2) is None
    assert machine.busy(3.0) == (
        "Other programs were at work before the first measurement (load 3.0 on 2 cores): these "
        "times and ratios mean nothing. Run it again on a quiet machine."
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", plan.LAYOUTS)
@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_peers_compute_what_ours_computes(framework, layout, training):
    use = measuring(framework)
    case = plan.Case("forward", plan.size("6x4x5x3"), "float32", layout)
    given = use.given(case, native=True)
    peers = use.peers(case, given, training)
    expected = np.asarray(use.forward(ours.plain(given, training), given)()[0])
    for peer in peers.values():
        y = np.asarray(use.forward(peer, given)()[0])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
