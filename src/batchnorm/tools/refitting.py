"""How `fold` reads a PyTorch module's graph, through `torch.fx`, and builds the new module."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import fx

from batchnorm.tools import linear_torch
from batchnorm.tools.chains import Chain, Decisions
from batchnorm.tools.norm import Array
from batchnorm.tools.norm_torch import BASE, TorchNorm
from batchnorm.tools.norm_torch_own import norm_of
from batchnorm.tools.staying import stay

nn = torch.nn
# Modules that do nothing in inference.
INERT = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
    nn.Identity,
)


class Tracer(fx.Tracer):
    """Sees what `fold` knows as one node, subclasses of it too."""

    def is_leaf_module(self, m: Any, module_qualified_name: str) -> bool:
        known = isinstance(m, (BASE, *linear_torch.KNOWN))
        return known or super().is_leaf_module(m, module_qualified_name)


class Foldable:
    """The graph as `Decisions` asks for it.

    Args:
        module: traced, in evaluation.
        example: a batch's `Arguments`, which tell how many dimensions a tensor has; or None.
    """

    def __init__(self, module: fx.GraphModule, example: Any) -> None:
        self._nodes = list(module.graph.nodes)
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._calls = Counter(
            id(self.layer(node)) for node in self._nodes if node.op == "call_module"
        )
        self._ranks: dict[str, int] = {}
        if example is not None:
            self._ranks = _Ranks(module).of(example)

    def norms(self) -> list[Any]:
        return [node for node in self._nodes if isinstance(self.layer(node), BASE)]

    def layer(self, node: Any) -> Any:
        return self._modules.get(node.target) if node.op == "call_module" else None

    def name(self, node: Any) -> str:
        return str(node.target) if node.op == "call_module" else str(node.name)

    def producer(self, node: Any) -> tuple[Any, str | None]:
        while True:
            before = node.args[0]
            if reason := self._why_not_alone(before):
                return before, reason
            if not self._is_inert(before):
                return before, None
            node = before

    def consumer(self, node: Any) -> tuple[Any, str | None]:
        while True:
            if reason := self._why_not_alone(node):
                return None, reason
            (node,) = node.users
            if not self._is_inert(node):
                return node, None

    def _why_not_alone(self, node: Any) -> str | None:
        """Why a node has not exactly one reader, in words."""
        name = repr(self.name(node))
        if any(one.op == "output" for one in node.users):
            return f"the output of {name} is an output of the model"
        if len(node.users) != 1:
            words = ", ".join(repr(self.name(one)) for one in node.users)
            return f"the output of {name} has more than one consumer: {words}"
        return None

    def _is_inert(self, node: Any) -> bool:
        module = self.layer(node)
        return type(module) in INERT and len(node.args) == 1 and not _hooks(module)

    def why_never(self, node: Any) -> str | None:
        module = self.layer(node)
        ours = sys.modules.get("batchnorm.torch.modules")
        known = (BASE.forward, nn.SyncBatchNorm.forward, *([ours.Modes.forward] if ours else []))
        if type(module).forward not in known or getattr(module, "_after", None):
            return f"its class {type(module).__name__} has a forward of its own"
        if self._calls[id(module)] > 1:
            return f"it is shared: called {self._calls[id(module)]} times"
        if module.running_mean is None:
            return "it normalizes with the batch: it has no moving statistics"
        batch, update = norm_of(module, "", False).decides(False)
        if batch:
            return "it normalizes with the batch (statistics='batch')"
        if update:
            return "inference updates its statistics (update_statistics=True)"
        if _hooks(module):
            return "it has hooks"
        if node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            return "it is not called with one tensor"
        if not all(np.isfinite(vector).all() for vector in self.affine(node)):
            return "its statistics or parameters are not finite; see batchnorm.repair"
        return None

    def affine(self, node: Any) -> tuple[Array, Array]:
        return TorchNorm(self.layer(node), self.name(node), False).affine()

    def activation(self, node: Any) -> Any:
        return getattr(self.layer(node), "activation", None)  # of ours: "relu"

    def continues(self, before: Any, node: Any) -> bool:
        last, module = self.layer(before), self.layer(node)
        if nn.utils.parametrize.is_parametrized(last):
            return False  # nothing can be stored in it
        return bool(last.running_mean.dtype == module.running_mean.dtype)

    def why_not_linear(self, node: Any, chain: Chain) -> str | None:
        module, name, norm = self.layer(node), repr(self.name(node)), chain.nodes[0]
        if type(module) not in linear_torch.KNOWN:
            kind = node.op if module is None else type(module).__name__
            return f"{name} ({kind}) is no linear module that fold knows"
        if self._calls[id(module)] > 1:
            return f"{name} is shared: called {self._calls[id(module)]} times"
        if _hooks(module):
            return f"{name} has hooks"
        of = self.layer(norm)
        if module.weight.dtype != of.running_mean.dtype:
            return f"{name} computes in {module.weight.dtype}, this in {of.running_mean.dtype}"
        if type(module) is nn.Linear and self._ranks.get(norm.name) != 2:
            rank = self._ranks.get(norm.name)
            if rank is None:
                return (
                    f"{name} has its channels last, this on axis 1: pass data that shows its rank"
                )
            return f"{name} has its channels on axis {rank - 1}, this on axis 1"
        return None

    def why_not_after(self, node: Any) -> str | None:
        return None

    def why_not_before(self, node: Any, b: Array) -> str | None:
        return linear_torch.why_not_before(self.layer(node), self.name(node), b)


class _Ranks(fx.Interpreter):
    """How many dimensions the inputs of normalizations have, by the name of their node."""

    def of(self, example: Any) -> dict[str, int]:
        self._found: dict[str, int] = {}
        with torch.no_grad():
            self.run(*_by_place(self.module, example))
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self._found[n.name] = result.dim()
        return result


def _by_place(module: Any, example: Any) -> list[Any]:
    """The arguments in the order of the graph's inputs, with defaults where none is given."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    given = list(example.args)
    for node in inputs[len(given) :]:
        default = node.args[0] if node.args else None
        given.append(example.kwargs.get(node.target, default))
    return given


class Refitting:
    """A PyTorch module's folds, decided, and the module without what was folded.

    Raises:
        ValueError: `torch.fx` cannot trace the module.
    """

    def __init__(self, module: Any, example: Any) -> None:
        self._module = traced(module)
        self._graph = Foldable(self._module, example)
        self._done = Decisions(self._graph)
        self.folded, self.refused = self._done.folded, self._done.refused

    def model(self) -> Any:
        """The new module, in evaluation mode. It shares no tensor with the given one."""
        result, done = self._module, self._done
        for node in list(result.graph.nodes):
            module = self._graph.layer(node)
            if id(module) in done.gone:
                instead = node.args[0]
                if self._graph.activation(node) is not None:
                    with result.graph.inserting_after(node):
                        instead = result.graph.call_function(torch.relu, (instead,))
                node.replace_all_uses_with(instead)
                result.graph.erase_node(node)
                result.delete_submodule(str(node.target))
            elif id(module) in done.changes:
                change, weights = done.changes[id(module)], linear_torch.Weights(module)
                for chain in change.before:
                    weights.before(chain.a, chain.b)
                for chain in change.after:
                    weights.after(chain.a, chain.b)
                weights.put_into(module)
            elif id(module) in done.merged:
                _merge_into(module, done.merged[id(module)])
        result.recompile()
        return result


def traced(module: Any) -> fx.GraphModule:
    """A copy of the module as a graph, in evaluation mode."""
    own = copy.deepcopy(module).eval()
    try:
        graph = Tracer().trace(own)
        return fx.GraphModule(own, graph, type(module).__name__).eval()
    except Exception as error:  # whatever the module's forward raises under the tracer
        words = next(iter(str(error).splitlines()), "")
        raise ValueError(
            "fold: model must be a module that torch.fx can trace, so that its graph is known; got "
            f"{type(module).__name__}. {type(error).__name__}: {words}"
        ) from error


def _hooks(module: Any) -> bool:
    """Whether somebody's hooks do more than the module itself."""
    every = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook is not stay for hook in every)


def _merge_into(module: Any, chain: Chain) -> None:
    """Makes the chain's first module do what the whole chain does."""
    norm = TorchNorm(module, "", False)
    mean, variance = norm.host_statistics()
    like = module.running_mean
    values = {
        "weight": chain.a * np.sqrt(variance + norm.epsilon),
        "bias": chain.b + chain.a * mean,
    }
    for name, value in values.items():
        setattr(module, name, nn.Parameter(torch.as_tensor(value).to(like.device, like.dtype)))
