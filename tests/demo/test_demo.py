"""`batchnorm demo --quick` from end to end, on the Keras backend of this process."""

import csv
import json
import os

import pytest
from typer.testing import CliRunner

from batchnorm import cli

pytestmark = pytest.mark.keras

KINDS = ["none", "batch", *["batch", "renorm"] * 3, "batch", "ghost"]
REGIMES = (
    "batches of 64",
    "batches of 4",
    "two classes a batch",
    "one class a batch",
    "batches of 512",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Output and folder of one run, shared by the tests."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    backend = os.environ["KERAS_BACKEND"]
    arguments = ["demo", "--quick", "--seeds", "2", "--out", str(out), "--backend", backend]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output, out


def test_the_table_has_a_line_for_each_row(outcome):
    output, _ = outcome
    assert f"Handwritten digits, Keras on {os.environ['KERAS_BACKEND']}" in output
    for name in REGIMES:
        assert f"│ {name}" in output
    assert output.count(" of 2 │") == 10


def test_every_claim_is_judged_in_words(outcome):
    output, _ = outcome
    verdicts = (": seen here.", ": not seen here.", ": the opposite was seen here.")
    assert sum(output.count(verdict) for verdict in verdicts) == 6
    assert "cut short by --quick" in output


def test_rows_and_runs_are_written(outcome):
    _, out = outcome
    with (out / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = json.loads((out / "runs.json").read_text())
    assert [row["kind"] for row in rows] == KINDS
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    assert len(runs["runs"]) == 20
    assert len(runs["claims"]) == 6


def test_the_plot_is_a_picture(outcome):
    _, out = outcome
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
