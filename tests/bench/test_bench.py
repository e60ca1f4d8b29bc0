"""`batchnorm bench` from end to end on tiny sizes: rows of every question, never their values."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from batchnorm import cli
from batchnorm.bench import command, plan

QUICK = ["bench", "--quick", "--sizes", "32x64,16x4x5x5", "--dtype", "float32"]


# On busy cores threads that wait for each other stand still: one thread each.
ENVIRONMENT = {
    "COLUMNS": "250",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}


def run(*arguments: str):
    return CliRunner(env=ENVIRONMENT).invoke(cli.app, arguments)


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def check(rows, question):
    assert rows
    assert {row["question"] for row in rows} == {question}
    for row in rows:
        for name in ("ratio", "ratio_of_medians", "ours_min_ms", "peer_min_ms"):
            assert 0 < float(row[name]) < math.inf
        assert float(row["ours_min_ms"]) <= float(row["ours_median_ms"])
        assert row["cpu"]
        assert int(row["cores"]) >= 1
        assert "numpy" in row["versions"]


def test_the_kernels_are_measured_over_a_copy(tmp_path):
    out = tmp_path / "new" / "folder"
    result = run(*QUICK, "--question", "kernels", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = read(out / "kernels.csv")
    check(rows, "kernels")
    assert {(row["what"], row["layout"]) for row in rows} == {
        (what, layout)
        for what in ("forward", "backward", "inference")
        for layout in ("first", "last")
    }
    assert all(row["peer"].startswith("copy, ") and row["outputs"] == "given" for row in rows)
    assert (out / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert "Kernels, over a copy of the same tensor" in result.output
    assert "cut short by --quick" in result.output


PEERS = {
    "torch": {"torch eager", "torch.compile"},
    "jax": {"jax.jit", *(["flax"] if importlib.util.find_spec("flax") else [])},
    "tensorflow": {"TF fused"},
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", PEERS)
def test_every_question_has_rows_on_every_framework(framework, tmp_path):
    """One test a framework: starting it takes longer than measuring."""
    questions = [name for name in plan.QUESTIONS if plan.frameworks_of(name, (framework,)) != ("",)]
    questions = [name for name in questions if plan.frameworks_of(name, (framework,))]
    arguments = [part for name in questions for part in ("--question", name)]
    result = run(*QUICK, "--framework", framework, *arguments, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "not measured" not in result.output
    rows = {name: read(tmp_path / f"{name}.csv") for name in questions}
    for question, some in rows.items():
        check(some, question)
        assert (tmp_path / f"{question}.png").exists()
    assert {row["peer"] for row in rows["frameworks"]} == PEERS[framework]
    assert {row["variant"] for row in rows["modes"]} == set(plan.MODES)
    if framework == "tensorflow" and importlib.util.find_spec("tf_keras"):
        originals = {row["variant"] for row in rows["modes"] if row["peer"] == "tf_keras"}
        assert originals == {"renorm", "ghost"}
    assert {row["ours"] for row in rows["models"]} == {"ours", "ours, activation='relu'"}
    modules = {"modules"} if framework == "torch" else set()
    assert {row["variant"] for row in rows["tools"]} == {"ours", "keras"} | modules


def test_help_imports_no_framework():
    code = (
        "import sys\n"
        "from batchnorm.cli import app\n"
        "app(['bench', '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'jax', 'tensorflow', 'keras', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_a_missing_framework_is_one_sentence_and_the_rest_goes_on(monkeypatch):
    found = {"torch": None}
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: found.get(name, SimpleNamespace())
    )
    asked = []
    monkeypatch.setattr("batchnorm.bench.run", lambda jobs, out: asked.extend(jobs) or True)
    result = run("bench", "--question", "small")
    assert result.output == (
        "batchnorm bench: torch is left out, without torch. Run: pip install 'batchnorm[torch]'\n"
    )
    assert result.exit_code == 0
    assert [job.framework for job in asked] == ["jax", "tensorflow"]


def test_nothing_left_to_measure_is_a_failure(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    result = run("bench", "--question", "small", "--framework", "jax")
    assert result.exit_code == 1
    assert result.output == (
        "batchnorm bench: jax is left out, without jax, keras. Run: pip install 'batchnorm[jax]'\n"
    )


@pytest.mark.parametrize("text", ["big", "32", "32x0", "32x64x", "1x2x3x4x5x6"])
def test_a_size_that_is_none_is_refused(text):
    result = run("bench", "--sizes", f"32x64,{text}")
    assert result.exit_code == 1
    assert result.output == (
        "batchnorm bench: --sizes must be samples x channels x positions, such as 32x64 or "
        f"64x64x56x56, with commas between them; got '{text}'.\n"
    )


def test_a_process_that_dies_is_told_with_its_last_words():
    job = plan.Settings("no_such_question", "", ("32x64",))
    *_, last = command.process(job)
    assert last == {
        "stopped": "ModuleNotFoundError: No module named 'batchnorm.bench.no_such_question'"
    }


def test_a_case_that_fails_is_one_sentence_and_the_rest_goes_on():
    from batchnorm.bench import worker

    told: list[dict] = []
    good, bad = (
        plan.Case("forward", plan.size(text), "float32", "last") for text in ("2x2", "3x3")
    )

    def measure(case, settings):
        if case is bad:
            raise ValueError("no such thing\nsecond line")
        return []

    module = SimpleNamespace(cases=lambda settings: [bad, good], measure=measure)
    sys.modules["batchnorm.bench.pretended"] = module
    try:
        worker.measure(plan.Settings("pretended", "", ("2x2",)), told.append)
    finally:
        del sys.modules["batchnorm.bench.pretended"]
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
