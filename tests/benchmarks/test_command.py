"""`python -m benchmarks` from end to end on tiny sizes: rows of each question, not their values."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command
from benchmarks import cases, processes, rows, worker
from benchmarks.timing import Contest

PEERS = {
    "torch": {"torch eager", "torch.compile"},
    "jax": {"jax.jit", *(["flax"] if importlib.util.find_spec("flax") else [])},
    "tensorflow": {"TF fused"},
}
SMALL_PEERS = {
    "torch": {"F.batch_norm", "nn.BatchNorm1d"},
    "jax": PEERS["jax"],
    "tensorflow": {"FusedBatchNormV3", "tf.nn.batch_normalization"},
}


def check(row):
    for name in ("ratio", "ratio_of_medians", "ours_min_ms", "peer_min_ms"):
        assert 0 < float(row[name]) < math.inf
    assert float(row["ours_min_ms"]) <= float(row["ours_median_ms"])


@pytest.fixture
def one_thread(monkeypatch):
    """On busy cores threads that wait for each other stand still."""
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(name, "1")


def test_the_command_leaves_rows_and_a_plot_and_prints_both(one_thread, tmp_path, capfd):
    out = tmp_path / "new" / "folder"
    arguments = ("--question", "small", "--framework", "torch", "--out", str(out), "--quick")
    assert command.main(arguments) == 0
    with (out / "small.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 12
    for row in found:
        check(row)
        assert row["cpu"]
        assert int(row["cores"]) >= 1
        assert "numpy" in row["versions"]
    assert (out / "small.png").read_bytes().startswith(b"\x89PNG")
    output = capfd.readouterr().out
    assert cases.QUESTIONS["small"] in output
    assert "small tensors, step, over torch's own <= 2.2: " in output
    assert "cut short by --quick" in output
    assert "12 rows in " in output


@pytest.mark.slow
@pytest.mark.parametrize("framework", PEERS)
def test_every_question_has_rows_on_every_framework(framework, one_thread):
    """In one process: starting it takes longer than measuring."""
    names = cases.QUESTIONS
    questions = [one for one in names if cases.frameworks_of(one, (framework,)) == (framework,)]
    questions = [one for one in questions if one != "gpu"]  # test_gpu.py: it may have none
    jobs = [
        cases.Settings(
            question, framework, ("32x64", "16x4x5x5"), ("float32",),
            repeats=2, seconds=1.0, quick=True,
        )
        for question in questions
    ]  # fmt: skip
    told = list(processes.process(*jobs))
    assert not [line for line in told if "said" in line or "stopped" in line]
    found = {question: [] for question in questions}
    for row in (line["row"] for line in told if "row" in line):
        check(row)
        found[row["question"]].append(row)
    assert all(found.values())
    assert {row["peer"] for row in found["frameworks"]} == PEERS[framework]
    assert {row["peer"] for row in found["small"]} == SMALL_PEERS[framework]
    assert {row["what"] for row in found["small"]} == {"forward", "inference", "step"}
    assert {row["variant"] for row in found["modes"]} == set(cases.MODES)
    if framework == "tensorflow" and importlib.util.find_spec("tf_keras"):
        originals = {row["variant"] for row in found["modes"] if row["peer"] == "tf_keras"}
        assert originals == {"renorm", "ghost"}
    assert {row["ours"] for row in found["models"]} == {"ours", "ours, activation='relu'"}
    modules = {"modules"} if framework == "torch" else set()
    assert {row["variant"] for row in found["tools"]} == {"ours", "keras"} | modules


def test_help_names_every_question_and_imports_no_framework():
    code = (
        "import sys\n"
        "from benchmarks.__main__ import parser\n"
        "print(parser().format_help())\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'keras', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=processes.ROOT,
    )  # fmt: skip
    assert done.stdout.endswith("[]\n")
    assert all(question in done.stdout for question in cases.QUESTIONS)


def test_a_missing_framework_is_one_sentence_and_the_rest_goes_on(monkeypatch, capsys):
    found = {"torch": None}
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: found.get(name, SimpleNamespace())
    )
    asked = []
    monkeypatch.setattr(processes, "run", lambda jobs, out: asked.extend(jobs) or True)
    assert command.main(["--question", "small"]) == 0
    assert capsys.readouterr().err == (
        "benchmarks: torch is left out, without torch. Run: pip install '.[torch]'\n"
    )
    assert [job.framework for job in asked] == ["jax", "tensorflow"]


def test_nothing_left_to_measure_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--question", "small", "--framework", "jax"]) == 1
    assert capsys.readouterr().err == (
        "benchmarks: jax is left out, without jax, keras. Run: pip install '.[jax]'\n"
    )


@pytest.mark.parametrize("text", ["big", "32", "32x0", "32x64x", "1x2x3x4x5x6"])
def test_a_size_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--sizes", "32x64", text])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(
        "argument --sizes: benchmarks: --sizes must be samples x channels x positions, such as "
        f"32x64 or 64x64x56x56; got '{text}'.\n"
    )


def test_a_process_that_dies_is_told_with_its_last_words():
    job = cases.Settings("no_such_question", "", ("32x64",))
    *_, last = processes.process(job)
    assert last == {
        "stopped": "ModuleNotFoundError: No module named 'benchmarks.questions.no_such_question'"
    }


def told_of(contest, *sizes):
    """What a worker tells of a question with these cases."""
    told: list[dict] = []
    some = [cases.Case("forward", cases.size(text), "float32", "last") for text in sizes]
    question = SimpleNamespace(cases=lambda settings: some, contest=contest)
    worker.measure(question, cases.Settings("pretended", "", sizes, repeats=1), told.append)
    return told


def test_a_case_that_fails_is_one_sentence_and_the_rest_goes_on():
    def contest(case, settings):
        if str(case.size) == "3x3":
            raise ValueError("no such thing\nsecond line")
        return Contest({})

    told = told_of(contest, "3x3", "2x2")
    assert told == [
        {"total": 2},
        {"step": "forward, 3x3 float32, channels last"},
        {
            "said": "pretended: not measured: forward, 3x3 float32, channels last. "
            "ValueError: no such thing"
        },
        {"step": "forward, 2x2 float32, channels last"},
    ]
    assert all(json.dumps(line) for line in told)


def test_each_of_ours_is_compared_with_each_peer_and_each_unit():
    contest = Contest(
        {"one": int, "two": int}, {"peer": int}, {"unit": int}, {"first": rows.Times(8.0, 9.0)}
    )
    told = told_of(lambda case, settings: contest, "2x2")
    found = [line["row"] for line in told if "row" in line]
    assert [(row["ours"], row["peer"], row["ratio_of"]) for row in found] == [
        (ours, peer, ratio)
        for ours in ("one", "two", "first")
        for peer, ratio in (("peer", "peer / ours"), ("unit", "ours / peer"))
    ]
    assert found[-1]["ours_min_ms"] == 8.0
