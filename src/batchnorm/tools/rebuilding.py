"""How `fold` reads a Keras model's graph, and builds the new model."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from batchnorm import _axes
from batchnorm.keras import BatchNormalizationBase
from batchnorm.tools.chains import Chain, Decisions
from batchnorm.tools.graph import Graph
from batchnorm.tools.linear import Weights, channel_axis, is_linear, why_not_before
from batchnorm.tools.norm import Array
from batchnorm.tools.norm_keras import KerasNorm, norm_of

Normalization = keras.layers.BatchNormalization


class Foldable(Graph):
    """The graph as `Decisions` asks for it.

    Args:
        blocked: why nothing in it may be folded, or None.
    """

    def __init__(self, model: Any, blocked: str | None) -> None:
        super().__init__(model)
        self._blocked = blocked

    def norms(self) -> list[Any]:
        return [node for node in self.nodes if isinstance(node.operation, Normalization)]

    def layer(self, node: Any) -> Any:
        return node.operation

    def name(self, node: Any) -> str:
        name: str = node.operation.name
        return name

    def why_never(self, node: Any) -> str | None:
        layer = node.operation
        if self._blocked:
            return self._blocked
        if type(layer).call not in (Normalization.call, BatchNormalizationBase.call):
            return f"its class {type(layer).__name__} has a call of its own"
        if self.calls[id(layer)] > 1:
            return f"it is shared: called {self.calls[id(layer)]} times"
        if node.arguments.kwargs.get("training"):
            return "it is called with training=True: it normalizes with the batch"
        if len(node.input_tensors) > 1:
            return "it takes more inputs than one"
        batch, update = norm_of(layer, layer.name).decides(False)
        if batch:
            return "it normalizes with the batch (statistics='batch')"
        if update:
            return "inference updates its statistics (update_statistics=True)"
        if not isinstance(layer.axis, int) and len(layer.axis) > 1:
            return f"it normalizes several axes: {list(layer.axis)}"
        if not all(np.isfinite(vector).all() for vector in self.affine(node)):
            return "its statistics or parameters are not finite; see batchnorm.repair"
        return None

    def affine(self, node: Any) -> tuple[Array, Array]:
        return KerasNorm(node.operation, node.operation.name).affine()

    def activation(self, node: Any) -> Any:
        own = getattr(node.operation, "activation", None)
        return None if own is None or own is keras.activations.linear else own

    def continues(self, before: Any, node: Any) -> bool:
        rank = len(before.input_tensors[0].shape)
        last, layer = before.operation, node.operation
        axes = [_axes.resolve(one.axis, rank, one.name) for one in (last, layer)]
        return axes[0] == axes[1] and bool(last.compute_dtype == layer.compute_dtype)

    def why_not_linear(self, node: Any, chain: Chain) -> str | None:
        layer, norm = node.operation, chain.nodes[0].operation
        name = repr(layer.name)
        if not is_linear(layer):
            return f"{name} ({type(layer).__name__}) is no linear layer that fold knows"
        if self.calls[id(layer)] > 1:
            return f"{name} is shared: called {self.calls[id(layer)]} times"
        rank = len(chain.nodes[0].input_tensors[0].shape)
        if _axes.resolve(norm.axis, rank, norm.name) != (channel_axis(layer) % rank,):
            return f"{name} has its channels on axis {channel_axis(layer)}, this on {norm.axis}"
        if layer.compute_dtype != norm.compute_dtype:
            return f"{name} computes in {layer.compute_dtype}, this in {norm.compute_dtype}"
        if getattr(layer, "quantization_mode", None) is not None:
            return f"{name} is quantized"
        if getattr(layer, "lora_enabled", False):
            return f"{name} has LoRA weights"
        return None

    def why_not_after(self, node: Any) -> str | None:
        layer = node.operation
        if layer.activation is keras.activations.linear:
            return None
        name = keras.activations.serialize(layer.activation)
        return f"{layer.name!r} ends in the activation {name!r}"

    def why_not_before(self, node: Any, b: Array) -> str | None:
        return why_not_before(node.operation, b)

    def hidden(self) -> list[tuple[str, str]]:
        """Normalizations inside layers that are no models, and why nobody can fold them."""
        found = []
        for outer in {id(node.operation): node.operation for node in self.nodes}.values():
            if not isinstance(outer, keras.layers.Layer) or functional(outer) is not None:
                continue
            reason = f"it is inside {outer.name!r} ({type(outer).__name__}), which is no model"
            inside = outer._flatten_layers(include_self=False, recursive=True)
            found += [(one.name, reason) for one in inside if isinstance(one, Normalization)]
        return found

    def trains(self, model: Any) -> str | None:
        """Why nothing in a model inside this one may be folded, or None."""
        calls = (node for node in self.nodes if node.operation is model)
        if any(node.arguments.kwargs.get("training") for node in calls):
            return f"it is inside {model.name!r}, which is called with training=True"
        return self._blocked


class Rebuilding:
    """A model's folds, decided, and the model without what was folded.

    Args:
        prefix: before the names of layers, for a model inside another.
        blocked: why nothing in it may be folded, or None.
    """

    def __init__(self, model: Any, prefix: str = "", blocked: str | None = None) -> None:
        self._functional = functional(model)
        self._graph = Foldable(self._functional, blocked)
        self._done = Decisions(self._graph, prefix)
        for name, reason in self._graph.hidden():
            self._done.refuse(name, reason)
        self.folded, self.refused = self._done.folded, self._done.refused
        self._inner = self._inside(prefix)

    def _inside(self, prefix: str) -> dict[int, Rebuilding]:
        """What becomes of the models inside this one, by their id."""
        result: dict[int, Rebuilding] = {}
        for node in self._graph.nodes:
            model = node.operation
            if id(model) not in result and functional(model) is not None:
                inner = Rebuilding(model, f"{prefix}{model.name}/", self._graph.trains(model))
                result[id(model)] = inner
                self.folded += inner.folded
                self.refused += inner.refused
        return result

    def model(self) -> Any:
        """The new model. Layers in which nothing changes are the same objects in both."""
        pairs: list[tuple[Any, Any]] = []
        done = self._done

        def clone(operation: Any) -> Any:
            inner = self._inner.get(id(operation))
            if inner is not None:
                return inner.model() if inner.folded else operation
            if id(operation) in done.changes or id(operation) in done.merged:
                pairs.append((operation, self._built_again(operation)))
                return pairs[-1][1]
            return operation

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            return args[0] if operation.name in gone else operation(*args, **kwargs)

        gone = {
            node.operation.name for node in self._graph.nodes if id(node.operation) in done.gone
        }
        result = keras.models.clone_model(
            self._functional, clone_function=clone, call_function=call
        )
        for old, new in pairs:
            self._fill(old, new)
        return result

    def _built_again(self, layer: Any) -> Any:
        """A layer of the same kind and options with room for what it takes in, without weights."""
        with warnings.catch_warnings():  # of lambdas, which are left out below
            warnings.simplefilter("ignore", UserWarning)
            config = layer.get_config()
        merged = id(layer) in self._done.merged
        for name in config:  # what only a layer that learns needs
            if name.endswith(("_regularizer", "_constraint")):
                config[name] = None
            elif name.endswith("_initializer") and not merged:
                config[name] = "zeros"
        if merged:
            config["center"] = config["scale"] = True
            return type(layer).from_config(config)
        config["use_bias"], config["activation"] = True, None
        new = type(layer).from_config(config)
        new.activation = layer.activation  # not by name: it may be anybody's function
        for chain in self._done.changes[id(layer)].after:
            if chain.activation is not None:
                new.activation = chain.activation
        return new

    def _fill(self, old: Any, new: Any) -> None:
        """Gives a layer that was built again its weights."""
        if id(old) in self._done.merged:
            _merge_into(new, old, self._done.merged[id(old)])
            return
        change, weights = self._done.changes[id(old)], Weights(old)
        for chain in change.before:
            weights.before(chain.a, chain.b)
        for chain in change.after:
            weights.after(chain.a, chain.b)
        weights.put_into(new)


def functional(model: Any) -> Any:
    """The functional model that this is or holds; None where its graph is not known.

    A subclass with a `call` of its own may do anything: its graph is not what runs.
    """
    calls = next((kind for kind in type(model).__mro__ if "call" in vars(kind)), type(model))
    if calls.__module__.partition(".")[0] != "keras":
        return None
    if isinstance(model, keras.Sequential):
        model = model._functional
    known = isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth")
    return model if known and model.built else None


def _merge_into(new: Any, old: Any, chain: Chain) -> None:
    """Makes a layer like the chain's first one do what the whole chain does."""
    norm = KerasNorm(old, old.name)
    mean, variance = norm.host_statistics()
    deviation = np.sqrt(variance + norm.epsilon)
    KerasNorm(new, new.name).set_host_statistics(mean, variance)
    for variable, value in (
        (new.gamma, chain.a * deviation),
        (new.beta, chain.b + chain.a * mean),
    ):
        variable.assign(value.reshape(variable.shape).astype(variable.dtype))
