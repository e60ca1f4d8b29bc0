"""What the tools return has one shape: sentences, a table, plain values."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

import batchnorm
from batchnorm.tools.folds import Folding, Refusal

X = np.random.default_rng(0).normal(5, 2, (24, 3)).astype(np.float32)


def sick() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    model[0].running_var[1] = np.nan
    return model


RESULTS = {
    "inspect": lambda: batchnorm.inspect(sick(), X),
    "reestimate": lambda: batchnorm.reestimate(sick(), X),
    "repair": lambda: batchnorm.repair(sick(), X),
    "fold": lambda: Folding((("norm", "dense"),), (Refusal("0", "it is shared"),), np.nan),
    "transfer": lambda: batchnorm.transfer(sick(), sick(), X),
}


@pytest.mark.parametrize("tool", RESULTS)
def test_a_result_is_sentences_a_table_and_plain_values(tool):
    result = RESULTS[tool]()
    assert any(line.startswith("0: ") for line in str(result).splitlines())
    console = Console(file=io.StringIO(), width=200)
    console.print(result.table())
    assert " 0 " in console.file.getvalue()
    assert json.loads(result.to_json()) == result.to_dict()


def test_numbers_that_are_not_finite_are_none_in_plain_values():
    assert RESULTS["fold"]().to_dict() == {
        "folded": [["norm", "dense"]],
        "refused": [{"layer": "0", "reason": "it is shared"}],
        "difference": None,
    }


def test_a_re_estimate_in_words_says_what_moved():
    done = batchnorm.reestimate(torch.nn.BatchNorm1d(3), X)
    moved = np.sqrt(np.mean(X.mean(0) ** 2 / (X.var(0, ddof=1) + 1e-5)))
    assert str(done).startswith(f"BatchNorm1d: the mean moved by {moved:.3g} standard deviations, ")
    assert str(done).endswith(" at most; from 24 values per channel.")


def test_without_rich_a_result_is_sentences_and_its_table_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)  # no bar either
    result = RESULTS["reestimate"]()
    assert str(result).startswith("0: the mean moved by ")
    with pytest.raises(RuntimeError) as error:
        result.table()
    assert str(error.value) == (
        "table: rich must be installed; got no module 'rich'. Run: pip install 'batchnorm[cli]', "
        "or print the result, which is sentences."
    )
