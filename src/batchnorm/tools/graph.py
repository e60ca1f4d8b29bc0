"""The graph of a functional Keras model: who feeds whom."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras

# Layers that do nothing in inference.
INERT = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


class Graph:
    """Nodes of a functional model in the order in which they run."""

    def __init__(self, model: Any) -> None:
        by_depth = model._nodes_by_depth  # Keras (3.15) has no public name for a model's own nodes
        self.nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
        self.calls = Counter(id(node.operation) for node in self.nodes)
        self._producers = {id(one): node for node in self.nodes for one in node.output_tensors}
        self._consumers: dict[int, list[Any]] = {}
        for node in self.nodes:
            for one in node.input_tensors:
                self._consumers.setdefault(id(one), []).append(node)
        self._outputs = {id(one) for one in keras.tree.flatten(model.outputs)}

    def producer(self, node: Any) -> tuple[Any, str | None]:
        """The node that feeds this one, past inert layers, and why it may not be changed."""
        tensor = node.input_tensors[0]
        while True:
            before = self._producers[id(tensor)]
            if reason := self._why_not_alone(before, tensor):
                return before, reason
            if not _is_inert(before):
                return before, None
            tensor = before.input_tensors[0]

    def consumer(self, node: Any) -> tuple[Any, str | None]:
        """The one node that this one feeds, past inert layers, or why there is none."""
        while True:
            (tensor,) = node.output_tensors
            if reason := self._why_not_alone(node, tensor):
                return None, reason
            (node,) = self._consumers[id(tensor)]
            if not _is_inert(node):
                return node, None

    def _why_not_alone(self, node: Any, tensor: Any) -> str | None:
        """Why the tensor has not exactly one reader, in words."""
        name = repr(node.operation.name)
        readers = self._consumers.get(id(tensor), [])
        if id(tensor) in self._outputs:
            return f"the output of {name} is an output of the model"
        if len(readers) != 1:
            words = ", ".join(repr(one.operation.name) for one in readers)
            return f"the output of {name} has more than one consumer: {words}"
        return None


def _is_inert(node: Any) -> bool:
    operation = node.operation
    if node.arguments.kwargs.get("training"):
        return False  # dropout that goes on in inference
    if type(operation) is keras.layers.Activation:
        return operation.activation is keras.activations.linear
    return type(operation) in INERT
