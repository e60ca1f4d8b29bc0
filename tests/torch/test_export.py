"""What leaves the process: programs of our modules in inference are torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import batchnorm.torch as ours

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def module() -> ours.BatchNorm2d:
    torch.manual_seed(0)
    made = ours.BatchNorm2d(4, renorm=True, activation="relu")
    made(X * 2 + 1)
    return made.eval()


def test_an_exported_program_holds_no_operator_of_ours() -> None:
    norm = module()
    batch = torch.export.Dim("batch")
    program = torch.export.export(norm, (X,), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets
    assert not [one for one in targets if "batchnorm" in one]
    assert_close(program.module()(X[:2]), norm(X[:2]))


def test_a_traced_program_holds_no_operator_of_ours_and_takes_other_batches() -> None:
    norm = module()
    with pytest.warns(DeprecationWarning, match="trace"):
        traced = torch.jit.trace(norm, (X,))
    assert "batchnorm::" not in str(traced.inlined_graph)
    assert_close(traced(X[:2]), norm(X[:2]))
