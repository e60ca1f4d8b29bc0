"""Programs of PyTorch that leave the process: what was written here is loaded in another one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm
from exports_of import BARS, CASES, LOADED, WRITTEN, Case, Exports, difference


class Layer(torch.nn.Module):
    """A case as a module that calls the function."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.convolution = None
        if case.convolution:
            torch.manual_seed(3)
            kind = getattr(torch.nn, f"Conv{case.rank}d")
            self.convolution = kind(case.sizes[0], case.sizes[0], 3, padding=1)
        for name, vector in case.vectors().items():
            value = torch.as_tensor(vector)
            if name.startswith("moving"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, torch.nn.Parameter(value))

    def forward(self, x: Any) -> Any:
        case = self.case
        if self.convolution is not None:
            x = self.convolution(x)
        if case.dtype != "float32":
            x = x.to(getattr(torch, case.dtype))
        parameters = {"gamma": self.gamma} if case.scale else {}
        if case.center:
            parameters["beta"] = self.beta
        state = {"moving_mean": self.moving_mean, "moving_variance": self.moving_variance}
        if case.options.get("renorm"):
            state |= {"renorm_mean": self.moving_mean, "renorm_stddev": self.moving_variance}
            state |= {"moving_stddev": self.moving_variance}
        y, _ = batchnorm.batch_norm(x, parameters, state, axis=case.axis, **case.options)
        return y if case.dtype == "float32" else y.to(torch.float32)

    def expected(self, x: np.ndarray) -> np.ndarray:
        wide = torch.as_tensor(x).double()
        if self.convolution is not None:
            wide = torch.func.functional_call(
                self.convolution,
                {name: one.double() for name, one in self.convolution.named_parameters()},
                (wide,),
            ).detach()
        rounded = wide.to(getattr(torch, self.case.dtype)) if self.case.dtype != "float32" else wide
        return self.case.expected(rounded.double().numpy())


class Zoo(torch.nn.Module):
    """All cases at once: one program, an input and an output each."""

    def __init__(self, cases: dict[str, Case]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(case) for case in cases.values()])

    def forward(self, *inputs: Any) -> Any:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


# an FX graph does not know ranks: what they decide stays a call of `batch_norm`
WITHOUT_RANK = {name: case for name, case in CASES.items() if case.axis in (1, -1)}
KINDS = ("torch.export", "onnx, dynamo", "onnx, TorchScript", "torch.jit.trace")


def written(cases: dict[str, Case]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.as_tensor(case.inputs(WRITTEN)) for case in cases.values())


def inputs_of(cases: dict[str, Case]) -> dict[str, np.ndarray]:
    return {f"x{i:02}": case.inputs(LOADED) for i, case in enumerate(cases.values())}


def exported(cases: dict[str, Case]) -> Any:
    """A `torch.export` of all of them, whose batch is free."""
    zoo, inputs = Zoo(cases).eval(), written(cases)
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},) * len(inputs)
        return torch.export.export(zoo, inputs, dynamic_shapes=(shapes,))


def assert_computes(got: np.ndarray, case: Case) -> None:
    want = Layer(case).expected(case.inputs(LOADED))
    assert difference(got, want) <= BARS[case.dtype]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    made = Exports(tmp_path_factory.mktemp("torch"), inputs_of(CASES))
    zoo, inputs = Zoo(CASES).eval(), written(CASES)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch 2.13 deprecates its own exporters
        program = exported(CASES)
        torch.export.save(program, made.add("torch.export", "torch_export", "export.pt2"))
        torch.jit.trace(zoo, inputs).save(made.add("torch.jit.trace", "torch_trace", "trace.pt"))
        names = list(inputs_of(CASES))
        path = str(made.add("onnx, TorchScript", "onnx", "script.onnx"))
        torch.onnx.export(
            zoo, inputs, path, dynamo=False, input_names=names,
            dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
        path = str(made.add("onnx, dynamo", "onnx", "dynamo.onnx"))
        torch.onnx.export(program, (), path, dynamo=True, input_names=names, verbose=False)
    made.load()
    return made


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_exported_computes_the_same_where_batchnorm_is_not_installed(
    exports: Exports, kind: str, name: str
) -> None:
    assert_computes(exports.outputs(kind)[list(CASES).index(name)], CASES[name])


def test_an_fx_graph_computes_the_same_where_batchnorm_is_not_installed(tmp_path: Path) -> None:
    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(one) for one in WITHOUT_RANK.values()])

        def forward(self, x):  # torch.fx cannot pickle an annotation that is a string
            return [layer(x[i]) for i, layer in enumerate(self.layers)]

    made = Exports(tmp_path, inputs_of(WITHOUT_RANK))
    graph = torch.fx.symbolic_trace(Alone().eval())
    torch.save(graph, made.add("fx", "torch_fx", "graph.pt"))
    made.load()
    for got, case in zip(made.outputs("fx"), WITHOUT_RANK.values(), strict=True):
        assert_computes(got, case)


@pytest.mark.slow
def test_aotinductor_computes_the_same_where_batchnorm_is_not_installed(tmp_path: Path) -> None:
    cases = {name: CASES[name] for name in ("rank 4, axis 1", "rank 3, axis -1, no beta")}
    made = Exports(tmp_path, inputs_of(cases))
    path = str(made.add("AOTInductor", "torch_aoti", "aoti.pt2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(
            exported(cases),
            package_path=path,
            inductor_configs={"aot_inductor.precompile_headers": False},  # worth it for many models
        )
    made.load()
    for got, case in zip(made.outputs("AOTInductor"), cases.values(), strict=True):
        assert_computes(got, case)


def operations_of(case: Case) -> list[str]:
    """What an export of a layer calls, but for the views of vectors."""
    program = exported({"one": case})
    targets = [str(one.target) for one in program.graph.nodes if one.op == "call_function"]
    return [one for one in targets if not one.startswith(("aten.detach", "aten.reshape"))]


def test_an_export_holds_a_batch_normalization_for_channels_first() -> None:
    assert operations_of(CASES["rank 4, axis 1"]) == [
        "aten.conv2d.default",
        "aten.batch_norm.default",
    ]


def test_an_export_holds_few_operations_for_channels_last() -> None:
    assert operations_of(CASES["rank 4, axis -1, no gamma"]) == [
        f"aten.{one}"
        for one in ("add.Tensor", "rsqrt.default", "sub.Tensor", "addcmul.default")
    ]  # fmt: skip


def test_a_call_that_an_fx_graph_cannot_spell_out_is_one_call_of_batch_norm() -> None:
    parameters, state = batchnorm.init(torch.zeros(2, 3))
    x = torch.as_tensor(np.random.default_rng(0).normal(2, 3, (8, 3)).astype("float32"))

    def function(x: Any) -> Any:
        y, new = batchnorm.batch_norm(x, parameters, state, training=True)
        return y, new["moving_mean"]

    graph = torch.fx.symbolic_trace(function)
    targets = [one.target for one in graph.graph.nodes if one.op == "call_function"]
    assert batchnorm.batch_norm in targets
    got, mean = graph(x)
    values = x.double().numpy()
    want = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, 0.01 * values.mean(0), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_a_training_step_can_be_traced() -> None:
    parameters, state = batchnorm.init(torch.zeros(2, 3))
    rng = np.random.default_rng(0)
    x, other = (torch.as_tensor(rng.normal(2, 3, (8, 3)).astype("float32")) for _ in range(2))

    def function(x: Any) -> Any:
        return batchnorm.batch_norm(x, parameters, state, training=True)[0]

    values = other.double().numpy()
    want = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-3)
    got = torch.jit.trace(function, x)(other)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
