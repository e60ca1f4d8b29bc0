"""Programs of TensorFlow that leave the process: what was written here is loaded in another one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import batchnorm
from batchnorm import tf1
from exports_of import BARS, CASES, EPSILON, LOADED, Case, Exports, difference

v1 = tf.compat.v1
INPUTS = {name: f"x{i:02}" for i, name in enumerate(CASES)}
OUTPUTS = {name: f"output_{i:02}" for i, name in enumerate(CASES)}
NO_TFLITE = {  # TensorFlow Lite has them by its delegates alone, as for any other layer
    "float16", "bfloat16",
}  # fmt: skip
# TensorFlow 2.21's converter knows no convolution of channels first on the CPU, whatever follows
KERNELS = {
    name: np.random.default_rng(4).normal(0, 0.3, (3,) * case.rank + (case.sizes[-1],) * 2)
    for name, case in CASES.items()
    if case.convolution and case.axis == -1
}


def layer(name: str, x: Any) -> Any:
    case = CASES[name]
    if name in KERNELS:
        x = tf.nn.convolution(x, tf.constant(KERNELS[name], tf.float32), padding="SAME")
    vectors = {key: tf.constant(one) for key, one in case.vectors().items()}
    parameters = {"gamma": vectors["gamma"]} if case.scale else {}
    if case.center:
        parameters["beta"] = vectors["beta"]
    state = {key: vectors[key] for key in ("moving_mean", "moving_variance")}
    if case.options.get("renorm"):
        state |= dict.fromkeys(("renorm_mean", "renorm_stddev"), state["moving_mean"])
        state |= {"moving_stddev": state["moving_mean"]}
    x = tf.cast(x, case.dtype)
    y, _ = batchnorm.batch_norm(x, parameters, state, axis=case.axis, **case.options)
    return tf.cast(y, tf.float32)


def expected(name: str) -> np.ndarray:
    case = CASES[name]
    x = tf.constant(case.inputs(LOADED), tf.float64)
    if name in KERNELS:
        x = tf.nn.convolution(x, tf.constant(KERNELS[name]), padding="SAME")
    return case.expected(tf.cast(tf.cast(x, case.dtype), tf.float64).numpy())


def program(names: Any) -> Any:
    """All cases at once: one function, an input and an output each."""
    signature = [
        tf.TensorSpec((None, *CASES[name].sizes), tf.float32, name=INPUTS[name]) for name in names
    ]

    @tf.function(input_signature=signature)
    def function(*inputs: Any) -> Any:
        return {OUTPUTS[name]: layer(name, x) for name, x in zip(names, inputs, strict=True)}

    return function


LITE = [name for name in CASES if name not in NO_TFLITE]
TF1 = {
    "tf1.layers": (tf1.layers.batch_normalization, {}),
    "tf1.layers, fused": (tf1.layers.batch_normalization, {"fused": True}),
    "tf1.layers, ghost": (tf1.layers.batch_normalization, {"virtual_batch_size": 2}),
    "tf1.layers, renorm": (tf1.layers.batch_normalization, {"renorm": True}),
    "contrib, ReLU": (
        tf1.contrib.layers.batch_norm,
        {"activation_fn": tf.nn.relu, "is_training": False},
    ),
}


def frozen_graph() -> bytes:
    """Inference graphs of `batchnorm.tf1`, one behind the other's input, frozen."""
    case = CASES["rank 4, axis -1, no gamma"]
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, *case.sizes), name=INPUTS["rank 4, axis -1"])
        for i, (function, options) in enumerate(TF1.values()):
            with v1.variable_scope(f"scope_{i}"):
                y = function(x, epsilon=EPSILON, **options)
            tf.identity(y, name=f"output_{i:02}")
        session.run(v1.global_variables_initializer())
        for variable in v1.global_variables():
            for name, value in case.vectors().items():
                if variable.op.name.endswith(f"/{name}"):
                    session.run(v1.assign(variable, value.reshape(variable.shape.as_list())))
        names = [f"output_{i:02}" for i in range(len(TF1))]
        return v1.graph_util.convert_variables_to_constants(
            session, graph.as_graph_def(), names
        ).SerializeToString()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    import tf2onnx

    made = Exports(
        tmp_path_factory.mktemp("tensorflow"),
        {INPUTS[name]: case.inputs(LOADED) for name, case in CASES.items()},
    )
    everything, lite = program(list(CASES)), program(LITE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = tf.Module()
        module.function = everything
        path = made.add("SavedModel", "saved_model", "saved")
        tf.saved_model.save(module, str(path), signatures=everything)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(_lite(made, lite)))
        made.add("TFLite", "tflite", "model.tflite").write_bytes(converter.convert())
        path = str(made.add("tf2onnx", "onnx", "model.onnx"))
        tf2onnx.convert.from_function(
            everything, input_signature=everything.input_signature, opset=17, output_path=path
        )
        made.add("frozen", "frozen", "frozen.pb").write_bytes(frozen_graph())
    made.load()
    return made


def _lite(made: Exports, function: Any) -> Any:
    module = tf.Module()
    module.function = function
    path = made.folder / "lite"
    tf.saved_model.save(module, str(path), signatures=function)
    return path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["SavedModel", "TFLite", "tf2onnx"])
def test_what_was_exported_computes_the_same_where_batchnorm_is_not_installed(
    exports: Exports, kind: str, name: str
) -> None:
    names = LITE if kind == "TFLite" else list(CASES)
    if name not in names:
        return
    got = exports.outputs(kind)[names.index(name)]
    assert difference(got, expected(name)) <= BARS[CASES[name].dtype]


@pytest.mark.parametrize("name", TF1)
def test_a_frozen_graph_of_tf1_computes_the_same_where_batchnorm_is_not_installed(
    exports: Exports, name: str
) -> None:
    case = CASES["rank 4, axis -1"]
    x = CASES["rank 4, axis -1"].inputs(LOADED).astype("float64")
    want = Case(case.sizes, -1, scale=not name.startswith("contrib")).expected(x)
    want = np.maximum(want, 0) if name.startswith("contrib") else want
    got = exports.outputs("frozen")[list(TF1).index(name)]
    assert difference(got, want) <= 1e-5


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((2, 9, 7, 3), -1), ((2, 3, 9, 7), 1), ((50, 3), -1)])
def test_inference_in_a_graph_is_exact_far_from_zero(
    shape: tuple[int, ...], axis: int, jit_compile: bool
) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(1e5, 1.0, shape).astype("float32")
    state = {"moving_mean": np.float32([1e5, 99_999, 1e5 + 2]), "moving_variance": np.ones(3)}
    state = {key: tf.Variable(one, dtype=tf.float32) for key, one in state.items()}

    @tf.function(jit_compile=jit_compile)
    def function(x: Any) -> Any:
        return batchnorm.batch_norm(x, {}, state, axis=axis)[0]

    spread = [3 if i == axis % len(shape) else 1 for i in range(len(shape))]
    mean = state["moving_mean"].numpy().astype("float64").reshape(spread)
    want = (x.astype("float64") - mean) / np.sqrt(1 + 1e-3)
    assert np.abs(function(tf.constant(x)).numpy() - want).max() <= 2e-6


def test_inference_of_images_is_one_operation_of_a_graph() -> None:
    parameters, state = batchnorm.init(tf.zeros((1, 1, 1, 3)))
    state = {key: tf.Variable(one) for key, one in state.items()}

    @tf.function(input_signature=[tf.TensorSpec((None, 5, 5, 3))])
    def function(x: Any) -> Any:
        return batchnorm.batch_norm(x, parameters, state)[0]

    graph = function.get_concrete_function().graph
    kinds = [one.type for one in graph.get_operations()]
    assert "FusedBatchNormV3" in kinds
    assert not {"Sub", "Mul", "AddV2"} & {
        one.type for one in graph.get_operations() for out in one.outputs if out.shape.rank == 4
    }
