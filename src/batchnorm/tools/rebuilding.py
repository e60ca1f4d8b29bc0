"""How `fold` decides what goes where, and builds the new model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from batchnorm import _axes
from batchnorm.keras import BatchNormalizationBase
from batchnorm.tools.folds import Refusal
from batchnorm.tools.graph import Graph
from batchnorm.tools.linear import Weights, channel_axis, is_linear, why_not_before
from batchnorm.tools.norm import Array
from batchnorm.tools.norm_keras import KerasNorm, norm_of

Normalization = keras.layers.BatchNormalization


@dataclass
class Chain:
    """Batch normalizations in a row, as one: y = a * x + b, then the last one's activation."""

    nodes: list[Any]
    a: Array
    b: Array
    activation: Any = None

    @property
    def layers(self) -> list[Any]:
        return [node.operation for node in self.nodes]


@dataclass
class Change:
    """What a linear layer takes in."""

    before: list[Chain] = field(default_factory=list)
    after: list[Chain] = field(default_factory=list)


class Rebuilding:
    """A model's folds, decided, and the model without what was folded.

    Args:
        prefix: before the names of layers, for a model inside another.
        blocked: why nothing in it may be folded, or None.
    """

    def __init__(self, model: Any, prefix: str = "", blocked: str | None = None) -> None:
        self.folded: list[tuple[str, str]] = []
        self.refused: list[Refusal] = []
        self._functional, self._prefix, self._blocked = functional(model), prefix, blocked
        self._graph = Graph(self._functional)
        self._changes: dict[int, Change] = {}  # by id of a linear layer
        self._merged: dict[int, Chain] = {}  # by id of the chain's first layer
        self._gone: set[int] = set()  # ids of layers that are left out
        for chain in self._chains():
            self._place(chain)
        self._refuse_hidden()

    def model(self) -> Any:
        """The new model."""
        pairs: list[tuple[Any, Any]] = []

        def clone(operation: Any) -> Any:
            if not isinstance(operation, keras.layers.Layer):
                return operation
            if functional(operation) is not None:
                blocked = self._blocked or self._trains(operation)
                inner = Rebuilding(operation, f"{self._prefix}{operation.name}/", blocked)
                self.folded += inner.folded
                self.refused += inner.refused
                return inner.model()
            new = type(operation).from_config(self._config(operation))
            pairs.append((operation, new))
            return new

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if operation.name in gone:
                return args[0]
            return operation(*args, **kwargs)

        gone = {
            node.operation.name for node in self._graph.nodes if id(node.operation) in self._gone
        }
        result = keras.models.clone_model(
            self._functional, clone_function=clone, call_function=call
        )
        for old, new in pairs:
            if id(old) not in self._gone:
                self._fill(old, new)
        return result

    def _chains(self) -> list[Chain]:
        """The normalizations that may be folded at all, neighbors as one; refuses the others."""
        chains: list[Chain] = []
        for node in self._graph.nodes:
            layer = node.operation
            if not isinstance(layer, Normalization):
                continue
            if reason := self._why_never(node):
                self._refuse(layer, reason)
                continue
            a, b = _affine(layer)
            before, blocked = self._graph.producer(node)
            previous = next((one for one in chains if one.nodes[-1] is before), None)
            if previous is not None and not blocked and not _misfit(previous, layer):
                previous.a, previous.b = a * previous.a, a * previous.b + b
                previous.nodes.append(node)
                previous.activation = _activation(layer)
            else:
                chains.append(Chain([node], a, b, _activation(layer)))
        return chains

    def _why_never(self, node: Any) -> str | None:
        """Why a normalization is not y = a * x + b of one input, or None."""
        layer = node.operation
        if self._blocked:
            return self._blocked
        if type(layer).call not in (Normalization.call, BatchNormalizationBase.call):
            return f"its class {type(layer).__name__} has a call of its own"
        if self._graph.calls[id(layer)] > 1:
            return f"it is shared: called {self._graph.calls[id(layer)]} times"
        if node.arguments.kwargs.get("training"):
            return "it is called with training=True: it normalizes with the batch"
        if len(node.input_tensors) > 1:
            return "it takes more inputs than one"
        if isinstance(layer, BatchNormalizationBase):
            batch, update = norm_of(layer, layer.name).decides(False)
            if batch:
                return "it normalizes with the batch (statistics='batch')"
            if update:
                return "inference updates its statistics (update_statistics=True)"
            if not isinstance(layer.axis, int) and len(layer.axis) > 1:
                return f"it normalizes several axes: {list(layer.axis)}"
        if not all(np.isfinite(vector).all() for vector in _affine(layer)):
            return "its statistics or parameters are not finite; see batchnorm.repair"
        return None

    def _trains(self, model: Any) -> str | None:
        """Why nothing in a model inside this one may be folded, or None."""
        calls = (node for node in self._graph.nodes if node.operation is model)
        if any(node.arguments.kwargs.get("training") for node in calls):
            return f"it is inside {model.name!r}, which is called with training=True"
        return None

    def _place(self, chain: Chain) -> None:
        """Puts a chain into a layer, or refuses it."""
        target, not_before = self._linear_before(chain)
        if target is not None:
            self._changes.setdefault(id(target), Change()).after.append(chain)
            self._note(chain, target)
            return
        target, not_behind = self._linear_behind(chain)
        if target is not None:
            self._changes.setdefault(id(target), Change()).before.append(chain)
            self._note(chain, target)
            return
        first, *rest = chain.layers
        if rest and chain.activation is None:
            self._merged[id(first)] = chain
            for layer in rest:
                self._note_one(layer, first)
            rest = []
        reason = (
            f"not into what is before it: {not_before}; not into what is behind it: {not_behind}"
        )
        for layer in (first, *rest):
            self._refuse(layer, reason)

    def _linear_before(self, chain: Chain) -> tuple[Any, str]:
        node, reason = self._graph.producer(chain.nodes[0])
        layer = node.operation
        reason = self._why_not_linear(layer, chain) or reason
        if reason is None and layer.activation is not keras.activations.linear:
            name = keras.activations.serialize(layer.activation)
            reason = f"{layer.name!r} ends in the activation {name!r}"
        return (layer, "") if reason is None else (None, reason)

    def _linear_behind(self, chain: Chain) -> tuple[Any, str]:
        if chain.activation is not None:
            return None, "it ends in an activation of its own"
        node, reason = self._graph.consumer(chain.nodes[-1])
        if reason is not None:
            return None, reason
        layer = node.operation
        reason = self._why_not_linear(layer, chain) or why_not_before(layer, chain.b)
        return (layer, "") if reason is None else (None, reason)

    def _why_not_linear(self, layer: Any, chain: Chain) -> str | None:
        name, norm = repr(layer.name), chain.layers[0]
        if not is_linear(layer):
            return f"{name} ({type(layer).__name__}) is no linear layer that fold knows"
        if self._graph.calls[id(layer)] > 1:
            return f"{name} is shared: called {self._graph.calls[id(layer)]} times"
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

    def _note(self, chain: Chain, target: Any) -> None:
        for layer in chain.layers:
            self._note_one(layer, target)

    def _note_one(self, layer: Any, target: Any) -> None:
        self._gone.add(id(layer))
        self.folded.append((self._prefix + layer.name, self._prefix + target.name))

    def _refuse(self, layer: Any, reason: str) -> None:
        refusal = Refusal(self._prefix + layer.name, reason)
        if refusal not in self.refused:  # a shared layer has several nodes
            self.refused.append(refusal)

    def _refuse_hidden(self) -> None:
        """Layers inside others that are no models: nobody knows how those call them."""
        for node in {id(node.operation): node for node in self._graph.nodes}.values():
            outer = node.operation
            if not isinstance(outer, keras.layers.Layer) or functional(outer) is not None:
                continue
            for layer in outer._flatten_layers(include_self=False, recursive=True):
                if isinstance(layer, Normalization):
                    kind = type(outer).__name__
                    self._refuse(layer, f"it is inside {outer.name!r} ({kind}), which is no model")

    def _config(self, layer: Any) -> dict[str, Any]:
        config = layer.get_config()
        if change := self._changes.get(id(layer)):
            config["use_bias"] = True
            for chain in change.after:
                if chain.activation is not None:
                    config["activation"] = keras.activations.serialize(chain.activation)
        if id(layer) in self._merged:
            config["center"] = config["scale"] = True
        return config

    def _fill(self, old: Any, new: Any) -> None:
        """Gives a cloned layer its weights."""
        if change := self._changes.get(id(old)):
            weights = Weights(old)
            for chain in change.before:
                weights.before(chain.a, chain.b)
            for chain in change.after:
                weights.after(chain.a, chain.b)
            weights.put_into(new)
            return
        if id(old) in self._merged:
            _merge_into(new, old, self._merged[id(old)])
            return
        parts = (one._flatten_layers(include_self=True, recursive=True) for one in (old, new))
        for ours, theirs in zip(*parts, strict=True):
            store: dict[str, Any] = {}
            ours.save_own_variables(store)
            # copies: `predict` on JAX gives its arrays away, and must not give away the model's
            theirs.load_own_variables(
                {key: np.array(keras.ops.convert_to_numpy(one)) for key, one in store.items()}
            )


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


def _affine(layer: Any) -> tuple[Array, Array]:
    """a and b of y = a * x + b: what the layer is in inference, in float64."""
    norm = KerasNorm(layer, layer.name)
    mean, variance = norm.host_statistics()
    gamma, beta = norm.host_parameters()
    with np.errstate(all="ignore"):
        a = (1.0 if gamma is None else gamma) / np.sqrt(variance + norm.epsilon)
        return a, (0.0 if beta is None else beta) - mean * a


def _activation(layer: Any) -> Any:
    """The activation that the layer itself applies; None for none."""
    own = getattr(layer, "activation", None)
    return None if own is None or own is keras.activations.linear else own


def _misfit(chain: Chain, layer: Any) -> bool:
    """Whether a normalization cannot continue a chain."""
    last = chain.layers[-1]
    rank = len(chain.nodes[-1].input_tensors[0].shape)
    axes = [_axes.resolve(one.axis, rank, one.name) for one in (last, layer)]
    return (
        chain.activation is not None
        or axes[0] != axes[1]
        or last.compute_dtype != layer.compute_dtype
    )


def _merge_into(new: Any, old: Any, chain: Chain) -> None:
    """Makes a clone of the chain's first layer do what the whole chain does."""
    norm = KerasNorm(old, old.name)
    mean, variance = norm.host_statistics()
    deviation = np.sqrt(variance + norm.epsilon)
    target = KerasNorm(new, new.name)
    target.set_host_statistics(mean, variance)
    for variable, value in (
        (new.gamma, chain.a * deviation),
        (new.beta, chain.b + chain.a * mean),
    ):
        variable.assign(value.reshape(variable.shape).astype(variable.dtype))
