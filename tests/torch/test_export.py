"""What leaves the process: programs of our modules in inference are torch's own operations."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import batchnorm.torch as ours
from exports_of import BARS, LOADED, WRITTEN, Exports, difference

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
MODULES: dict[str, tuple[type[torch.nn.Module], int, dict[str, Any]]] = {
    "1d, dense": (ours.BatchNorm1d, 0, {}),
    "1d": (ours.BatchNorm1d, 1, {}),
    "2d": (ours.BatchNorm2d, 2, {}),
    "3d": (ours.BatchNorm3d, 3, {"affine": False}),
    "relu": (ours.BatchNorm2d, 2, {"activation": "relu"}),
    "renorm": (ours.BatchNorm2d, 2, {"renorm": True}),
    "ghost": (ours.BatchNorm2d, 2, {"virtual_batch_size": 2}),
    "chunks": (ours.BatchNorm1d, 0, {"virtual_batch_size": 2, "ghost_order": "chunks"}),
    "cumulative": (ours.BatchNorm2d, 2, {"momentum": None}),
    "synchronized": (ours.SyncBatchNorm, 2, {}),
    "residual": (ours.BatchNorm2d, 2, {"activation": "relu"}),
}
KINDS = ("torch.export", "torch.jit.trace", "onnx, dynamo", "onnx, TorchScript")


def inputs(batch: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, 4, *[5] * rank, generator=rng) for _, rank, _ in MODULES.values()]


class Zoo(torch.nn.Module):
    """Each module on an input of its own; trained for a step, so that no buffer is its default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = [kind(4, **options) for kind, _, options in MODULES.values()]
        self.layers = torch.nn.ModuleList(made)
        self.train()(*(2 * x + 1 for x in inputs(4)))
        self.eval()

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            layer(x, residual=x) if name == "residual" else layer(x)
            for name, layer, x in zip(MODULES, self.layers, given, strict=True)
        )


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exports, tuple[torch.Tensor, ...]]:
    """What another process made of programs that were written here, and what eager calls make."""
    names = [f"x{i:02}" for i in range(len(MODULES))]
    loaded = {name: x.numpy() for name, x in zip(names, inputs(LOADED), strict=True)}
    made = Exports(tmp_path_factory.mktemp("modules"), loaded)
    zoo, given = Zoo(), tuple(inputs(WRITTEN))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch 2.13 deprecates its own exporters
        shapes = ({0: torch.export.Dim("batch")},) * len(given)
        program = torch.export.export(zoo, given, dynamic_shapes=(shapes,))
        torch.export.save(program, made.add(KINDS[0], "torch_export", "export.pt2"))
        torch.jit.trace(zoo, given).save(made.add(KINDS[1], "torch_trace", "trace.pt"))
        path = str(made.add(KINDS[2], "onnx", "dynamo.onnx"))
        torch.onnx.export(program, (), path, dynamo=True, input_names=names, verbose=False)
        path = str(made.add(KINDS[3], "onnx", "script.onnx"))
        axes = {name: {0: "batch"} for name in names}
        torch.onnx.export(zoo, given, path, dynamo=False, input_names=names, dynamic_axes=axes)
        wanted = zoo(*inputs(LOADED))
    made.load()
    return made, wanted


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_computes_the_same_where_batchnorm_is_not_installed(
    exports: tuple[Exports, Any], kind: str, name: str
) -> None:
    made, wanted = exports
    at = list(MODULES).index(name)
    assert difference(made.outputs(kind)[at], wanted[at].double().numpy()) <= BARS["float32"]


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
