"""The parts of `python -m benchmarks`; peers compute what ours computes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import bars, cases, machine, ours, report, rows, timing
from benchmarks.frameworks import engine as measuring
from benchmarks.questions import kernels
from benchmarks.timing import Times

SETTINGS = cases.Settings("kernels", "", ("32x64",))
CASE = cases.Case("forward", cases.size("64x64x56x56"), "float32", "first")


def a_row(ratio: float, **changes) -> rows.Row:
    times = {"ours": Times(ratio, ratio), "copy, ordinary": Times(1.0, 1.0)}
    made = rows.compare(SETTINGS, CASE, times, "ours", "copy, ordinary", over=True)
    return dataclasses.replace(made, **changes)


def test_a_size_has_the_same_bytes_in_every_type():
    size = cases.size("64x64x56x56")
    assert size.megabytes("float32") == pytest.approx(51.380224)
    assert str(size.of("bfloat16")) == "128x64x56x56"
    assert size.of("bfloat16").megabytes("bfloat16") == size.megabytes("float32")


def test_a_dense_input_has_one_layout():
    assert cases.size("32x64").layouts(("first", "last")) == ("last",)


def test_only_what_allocates_is_measured_with_every_memory():
    jobs = cases.jobs(
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
    jobs = cases.jobs(("synchronized",), ("jax", "torch"), ("default",), ("3x5",))
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


def test_a_bar_is_about_its_own_rows_only():
    assert str(bars.bar_of(a_row(1.2))) == "<= 1.3"
    assert bars.bar_of(a_row(1.2, dtype="bfloat16")) is None
    assert bars.bar_of(a_row(1.2, megabytes=6.4)) is None
    assert str(bars.bar_of(a_row(1.2, layout="last"))) == "<= 1.65"


def test_no_committed_row_has_two_bars():
    paths = sorted(report.MEASURED.glob("*.csv"))
    assert paths
    for row, machine_of in rows.read(paths):
        assert sum(bar.about(row) for bar in bars.BARS) <= 1, row
        assert machine_of["cpu"]


def test_a_verdict_names_the_worst_row():
    others = [a_row(1.6, size="other"), a_row(9.0, megabytes=1.0)]
    (verdict,) = bars.verdicts([a_row(1.25), *others])
    assert str(verdict) == (
        "forward channels-first, over copy <= 1.3: missed, 1 of 2, worst 1.60, mean 1.41"
    )


STEP = {"question": "frameworks", "what": "forward + backward"}


def test_a_geometric_mean_is_part_of_its_bar():
    changes = {**STEP, "framework": "tensorflow", "layout": "last", "peer": "TF fused"}
    first = a_row(0.96, **changes)
    (verdict,) = bars.verdicts([first, a_row(1.0, size="other", **changes)])
    assert str(verdict) == (
        "TF fused over ours, channels-last, C a multiple of 16 >= 0.95, mean >= 1.05: missed, "
        "2 of 2, worst 0.96, mean 0.98"
    )
    (verdict,) = bars.verdicts([first, a_row(1.3, size="other", **changes)])
    assert verdict.met


def test_the_bar_is_against_the_faster_of_two_peers():
    of = {**STEP, "framework": "jax"}
    slow = a_row(9.0, peer="jax.jit", peer_min_ms=9.0, **of)
    fast = a_row(3.0, peer="flax", peer_min_ms=3.0, **of)
    (verdict,) = bars.verdicts([slow, fast])
    assert (verdict.rows, verdict.met) == ((fast,), False)


def test_rows_survive_their_file(tmp_path):
    path = tmp_path / "rows.csv"
    rows.write(path, [a_row(1.5)], {"cpu": "a, b"})
    assert rows.read([path]) == [(a_row(1.5, megabytes=51.38), {"cpu": "a, b"})]


def test_a_new_run_replaces_the_rows_of_its_own_processor(tmp_path):
    path = tmp_path / "rows.csv"
    for ratio, cpu in ((1.0, "old"), (2.0, "new"), (3.0, "new")):
        rows.write(path, [a_row(ratio)], {"cpu": cpu})
    assert [(row.ratio, of["cpu"]) for row, of in rows.read([path])] == [(1.0, "old"), (3.0, "new")]


def test_the_table_has_a_verdict_for_each_processor(tmp_path):
    path = tmp_path / "rows.csv"
    for ratio, cpu in ((1.0, "one"), (2.0, "two")):
        rows.write(path, [a_row(ratio)], {"cpu": cpu})
    head, _, first, second, *_ = report.bars_table([path])
    assert head == "| what | bar | one | two |"
    assert first == (
        "| forward channels-first, over copy | <= 1.3 | met, 1 of 1, worst 1.00, mean 1.00 | "
        "missed, 0 of 1, worst 2.00, mean 2.00 |"
    )
    assert second.endswith("| not measured | not measured |")


def test_the_kernels_are_measured_over_their_fastest_copy(monkeypatch):
    times = {
        "copy, ordinary": Times(2.0, 2.5),
        "copy, non-temporal": Times(1.5, 1.6),
        "reading two tensors": Times(1.0, 1.0),
        "forward": Times(3.0, 3.0),
        "forward, ghost": Times(4.0, 4.0),
    }
    monkeypatch.setattr(kernels, "measured", lambda case, settings: times)
    found = list(kernels.rows(CASE, SETTINGS))
    assert [(row.what, row.variant, row.ours, row.ratio) for row in found] == [
        ("forward", "plain", "ours", 2.0),
        ("forward", "plain", "memory, two sweeps", 2.0 / 1.5),
        ("forward", "ghost", "ours", 4.0 / 1.5),
    ]
    assert {row.peer for row in found} == {"copy, non-temporal"}
    assert {row.outputs for row in found} == {"given"}


def test_the_kernels_program_is_read_as_it_prints(monkeypatch, tmp_path):
    line = '64x64x3136,float32,first,"copy, ordinary",1.5,1.75'
    program = tmp_path / "bench"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$*" = "21 10.0 0 float32 first 64 64 3136" ] || exit 1\n'
        "echo shape,dtype,layout,contender,minimum_ms,median_ms\n"
        f"echo '{line}'\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(kernels, "program", lambda: str(program))
    assert kernels.measured(CASE, SETTINGS) == {"copy, ordinary": Times(1.5, 1.75)}


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.busy(0.2) is None
    assert machine.busy(3.0) == (
        "Other programs were at work before the first measurement (load 3.0 on 2 cores): these "
        "times and ratios mean nothing. Run it again on a quiet machine."
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("framework", cases.FRAMEWORKS)
def test_peers_compute_what_ours_computes(framework, layout, training):
    use = measuring(framework)
    case = cases.Case("forward", cases.size("6x4x5x3"), "float32", layout)
    given = use.given(case, native=True)
    peers = use.peers(case, given, training)
    expected = np.asarray(use.forward(ours.plain(given, training), given)()[0])
    for peer in peers.values():
        y = np.asarray(use.forward(peer, given)()[0])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("framework", cases.FRAMEWORKS)
def test_small_peers_compute_what_ours_computes(framework, training):
    use = measuring(framework)
    given = use.given(cases.Case("forward", cases.size("6x4"), "float32", "last"))
    functions = {"ours": ours.plain(given, training), **use.small_peers(given, training)}
    forward, step = use.SMALL
    made = {name: forward(function, given)()[0] for name, function in functions.items()}
    slopes = {name: step(function, given)()[1] for name, function in functions.items()}
    for name in functions:
        np.testing.assert_allclose(made[name], made["ours"], rtol=1e-5, atol=1e-5)
        for one, own in zip(slopes[name], slopes["ours"], strict=True):
            np.testing.assert_allclose(one, own, rtol=1e-4, atol=1e-5)


def test_the_page_has_the_verdicts_of_the_committed_rows():
    lines = report.bars_table(sorted(report.MEASURED.glob("*.csv")))
    _, _, rest = report.PAGE.read_text().partition(report.BEGIN)
    table, end, _ = rest.partition(report.END)
    assert end
    assert table.strip().splitlines() == lines, "run: python -m benchmarks --page"
