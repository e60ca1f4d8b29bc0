"""Keras models with our layers leave the process; see `exports_of`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from batchnorm import keras as ours
from exports_of import BARS, CASES, EPSILON, LOADED, WRITTEN, Case, Exports, difference

pytestmark = pytest.mark.keras
BACKEND = keras.backend.backend()
LAYERS = CASES | {
    "ReLU": Case((6, 5, 4), -1, options={"activation": "relu"}),
    "ReLU, behind a convolution, axis 1": Case(
        (6, 5), 1, convolution=True, options={"activation": "relu"}
    ),
}
KINDS = {
    "tensorflow": ("SavedModel", "TFLite", "ONNX"),
    "jax": ("SavedModel", "ONNX"),
    "torch": ("torch.export", "ONNX"),
}[BACKEND]
NAMES = {name: f"x{i:02}" for i, name in enumerate(LAYERS)}
# TensorFlow Lite has them by its delegates alone
NO_TFLITE = {"float16", "bfloat16"}
# jax2onnx (0.17.1) has no convolutions of three dimensions
NO_JAX_ONNX = {name for name, case in LAYERS.items() if case.convolution and case.rank == 3}
policy = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16", "float32": "float32"}


def exported(kind: str) -> list[str]:
    """The layers that an exporter of this kind can write."""
    left_out = NO_TFLITE if kind == "TFLite" else set()
    if (BACKEND, kind) == ("jax", "ONNX"):
        left_out = NO_JAX_ONNX
    return [name for name in LAYERS if name not in left_out]


def convolved(name: str, x: Any) -> Any:
    case = LAYERS[name]
    if not case.convolution:
        return x
    kind = getattr(keras.layers, f"Conv{case.rank}D")
    return kind(
        case.sizes[-1], 3, padding="same", kernel_initializer=keras.initializers.GlorotUniform(2)
    )(x)


def normalized(name: str, x: Any, kind: Any = ours.BatchNormalization) -> Any:
    case = LAYERS[name]
    axis = list(case.axis) if isinstance(case.axis, tuple) else case.axis
    how = {"scale": case.scale, "center": case.center, "epsilon": EPSILON}
    layer = kind(axis=axis, dtype=policy[case.dtype], **how, **case.options)
    y = layer(x)
    for key, value in case.vectors().items():
        if getattr(layer, key, None) is not None:
            getattr(layer, key).assign(value)
    return y if case.dtype == "float32" else keras.ops.cast(y, "float32")


def model_of(names: Any) -> tuple[Any, Any]:
    """All layers at once, an input and an output each; and what the convolutions make of it."""
    inputs = [keras.Input(LAYERS[name].sizes, name=NAMES[name]) for name in names]
    before = [convolved(name, x) for name, x in zip(names, inputs, strict=True)]
    after = [normalized(name, x) for name, x in zip(names, before, strict=True)]
    return keras.Model(inputs, after), keras.Model(inputs, before)


def arrays(names: Any, batch: int) -> list[np.ndarray]:
    return [LAYERS[name].inputs(batch) for name in names]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Exports, list[np.ndarray]]:
    made = Exports(
        tmp_path_factory.mktemp("keras"),
        {NAMES[name]: case.inputs(LOADED) for name, case in LAYERS.items()},
    )
    model, before = model_of(LAYERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(arrays(LAYERS, WRITTEN))
        if BACKEND == "torch":
            write_torch(model, made)
        else:
            path = made.add("SavedModel", "saved_model", "saved")
            model.export(str(path), format="tf_saved_model", verbose=False)
            path = made.add("ONNX", "onnx", "model.onnx")
            names = exported("ONNX")
            held = model if len(names) == len(LAYERS) else model_of(names)[0]
            held(arrays(names, WRITTEN))
            held.export(str(path), format="onnx", verbose=False)
        if BACKEND == "tensorflow":
            lite = model_of(exported("TFLite"))[0]
            made.add("TFLite", "tflite", "model.tflite").write_bytes(as_tflite(lite, made.folder))
    made.load()
    return made, [keras.ops.convert_to_numpy(one) for one in before(arrays(LAYERS, LOADED))]


def write_torch(model: Any, made: Exports) -> None:
    import torch

    inputs = tuple(torch.as_tensor(one) for one in arrays(LAYERS, WRITTEN))

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return tuple(self.model(list(inputs)))

    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},) * len(inputs)
        program = torch.export.export(Module().eval(), inputs, dynamic_shapes=(shapes,))
        torch.export.save(program, made.add("torch.export", "torch_export", "export.pt2"))
        path = str(made.add("ONNX", "onnx", "model.onnx"))
        torch.onnx.export(
            program, (), path, dynamo=True, input_names=list(NAMES.values()), verbose=False
        )


def as_tflite(model: Any, folder: Path) -> bytes:
    import tensorflow as tf

    path = str(folder / "for_tflite")
    model.export(path, format="tf_saved_model", verbose=False)
    converted: bytes = tf.lite.TFLiteConverter.from_saved_model(path).convert()
    return converted


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_exported_computes_the_same_where_batchnorm_is_not_installed(
    exports: tuple[Exports, list[np.ndarray]], kind: str, name: str
) -> None:
    made, before = exports
    names = exported(kind)
    if name not in names:
        return
    case, x = LAYERS[name], before[list(LAYERS).index(name)]
    if case.dtype != "float32":
        x = keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(x, case.dtype), "float32"))
    want = case.expected(x.astype("float64"))
    assert difference(made.outputs(kind)[names.index(name)], want) <= BARS[case.dtype]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the converter is TensorFlow's")
@pytest.mark.filterwarnings("ignore")
def test_a_convolution_and_our_layer_convert_to_the_operations_of_keras_own(tmp_path: Path) -> None:
    import tensorflow as tf

    name = "rank 4, axis -1"

    def kinds(layer: Any) -> list[str]:
        x = keras.Input(LAYERS[name].sizes)
        model = keras.Model(x, keras.layers.ReLU()(normalized(name, convolved(name, x), layer)))
        interpreter = tf.lite.Interpreter(model_content=as_tflite(model, tmp_path))
        return [one["op_name"] for one in interpreter._get_ops_details()]

    assert kinds(ours.BatchNormalization) == kinds(keras.layers.BatchNormalization)
