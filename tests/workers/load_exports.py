"""Runs programs that another process has exported, where `batchnorm` cannot be imported.

    python load_exports.py FOLDER

FOLDER holds `programs.json`, `{name: [kind, file]}`, and `inputs.npz`. What each program returns is
written as `name.npz`; what it raises instead, as `name.txt`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Program = Callable[[dict[str, np.ndarray]], list[Any]]


def in_order(names: Iterable[str]) -> list[str]:
    """output_0, output_1, ..., output_10."""
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def saved_model(path: Path) -> Program:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    def program(inputs: dict[str, np.ndarray]) -> list[Any]:
        wanted = serve.structured_input_signature[1]
        outputs = serve(**{name: tf.constant(inputs[name]) for name in wanted})
        return [outputs[name].numpy() for name in in_order(outputs)]

    program.keeps = loaded  # type: ignore[attr-defined]
    return program


def tflite(path: Path) -> Program:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner("serving_default")

    def program(inputs: dict[str, np.ndarray]) -> list[Any]:
        outputs = runner(**{name: inputs[name] for name in runner.get_input_details()})
        return [outputs[name] for name in in_order(outputs)]

    return program


def frozen(path: Path) -> Program:
    import tensorflow as tf

    v1 = tf.compat.v1
    definition = v1.GraphDef.FromString(path.read_bytes())

    def program(inputs: dict[str, np.ndarray]) -> list[Any]:
        with tf.Graph().as_default() as graph, v1.Session() as session:
            tf.import_graph_def(definition, name="")
            names = [one.name for one in graph.get_operations()]
            outputs = in_order(one for one in names if one.startswith("output_"))
            fed = {f"{name}:0": inputs[name] for name in names if name in inputs}
            return session.run([f"{one}:0" for one in outputs], fed)

    return program


def onnx(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def program(inputs: dict[str, np.ndarray]) -> list[Any]:
        return session.run(None, {name: inputs[name] for name in names})

    return program


def _of_tensors(call: Callable[..., Any]) -> Program:
    import torch

    def program(inputs: dict[str, np.ndarray]) -> list[Any]:
        with torch.no_grad():
            outputs = call(*(torch.as_tensor(one) for one in inputs.values()))
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        return [one.numpy() for one in outputs]

    return program


def torch_export(path: Path) -> Program:
    import torch

    return _of_tensors(torch.export.load(path).module())


def torch_trace(path: Path) -> Program:
    import torch

    return _of_tensors(torch.jit.load(path))


def torch_fx(path: Path) -> Program:
    import torch

    graph = torch.load(path, weights_only=False)
    return _of_tensors(lambda *inputs: graph(list(inputs)))


def torch_aoti(path: Path) -> Program:
    import torch

    return _of_tensors(torch._inductor.aoti_load_package(str(path)))


def jax_export(path: Path) -> Program:
    import jax

    call = jax.export.deserialize(bytearray(path.read_bytes())).call
    return lambda inputs: [np.asarray(one) for one in call(*inputs.values())]


def main(folder: Path) -> None:
    sys.modules["batchnorm"] = None  # type: ignore[assignment]
    try:
        import batchnorm  # noqa: F401
    except ImportError:
        pass
    else:
        raise AssertionError("batchnorm can be imported here")
    inputs = dict(np.load(folder / "inputs.npz"))
    for name, (kind, file) in json.loads((folder / "programs.json").read_text()).items():
        try:
            outputs = globals()[kind](folder / file)(inputs)
            np.savez(folder / f"{name}.npz", *outputs)
        except Exception:
            (folder / f"{name}.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
