"""Programs of JAX that leave the process: what was written here is loaded in another one."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchnorm
from exports_of import BARS, CASES, LOADED, Exports, difference

NAMES = [f"x{i:02}" for i in range(len(CASES))]


def layer(name: str, x: Any) -> Any:
    case = CASES[name]
    vectors = {key: jnp.asarray(one) for key, one in case.vectors().items()}
    parameters = {"gamma": vectors["gamma"]} if case.scale else {}
    if case.center:
        parameters["beta"] = vectors["beta"]
    state = {key: vectors[key] for key in ("moving_mean", "moving_variance")}
    if case.options.get("renorm"):
        state |= dict.fromkeys(("renorm_mean", "renorm_stddev"), state["moving_mean"])
        state |= {"moving_stddev": state["moving_mean"]}
    x = x.astype(case.dtype)
    y, _ = batchnorm.batch_norm(x, parameters, state, axis=case.axis, **case.options)
    return y.astype("float32")


def everything(*inputs: Any) -> Any:
    """All cases at once: one program, an input and an output each."""
    return tuple(layer(name, x) for name, x in zip(CASES, inputs, strict=True))


def expected(name: str) -> np.ndarray:
    case = CASES[name]
    return case.expected(np.asarray(jnp.asarray(case.inputs(LOADED), case.dtype), "float64"))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    import jax.export
    import onnx
    from jax2onnx import to_onnx

    made = Exports(
        tmp_path_factory.mktemp("jax"),
        {name: case.inputs(LOADED) for name, case in zip(NAMES, CASES.values(), strict=True)},
    )
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, *case.sizes), jnp.float32) for case in CASES.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = jax.export.export(jax.jit(everything))(*shapes).serialize()
        made.add("jax.export", "jax_export", "program").write_bytes(program)
        model = to_onnx(everything, inputs=[("batch", *case.sizes) for case in CASES.values()])
        # the loader feeds inputs by these names, in the order of the arguments
        for one, name in zip(list(model.graph.input), NAMES, strict=True):
            for node in model.graph.node:
                node.input[:] = [name if of == one.name else of for of in node.input]
            one.name = name
        onnx.save(model, made.add("jax2onnx", "onnx", "model.onnx"))
    made.load()
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_inference_under_jit_is_one_fusion_over_x(dtype: str, activation: Any) -> None:
    x = jnp.ones((5, 6, 7, 8), dtype)
    parameters, state = batchnorm.init(x)

    def infer(x: Any, parameters: Any, state: Any) -> Any:
        return batchnorm.batch_norm(x, parameters, state, activation=activation)[0]

    program = jax.jit(infer).lower(x, parameters, state).compile().as_text()
    entry = program[program.index("ENTRY") :].splitlines()[1:]
    made = [line.split(" = ", 1)[1].split("(")[0] for line in entry if " = " in line]
    big = [one.split()[-1] for one in made if "[5,6,7,8]" in one]
    assert big == ["parameter", "fusion"]
    assert "custom-call" not in program


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["jax.export", "jax2onnx"])
def test_what_was_exported_computes_the_same_where_batchnorm_is_not_installed(
    exports: Exports, kind: str, name: str
) -> None:
    got = exports.outputs(kind)[list(CASES).index(name)]
    assert difference(got, expected(name)) <= BARS[CASES[name].dtype]
