"""Which layer takes a batch normalization in, and why not: what `fold` decides in any framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from batchnorm.tools.folds import Refusal
from batchnorm.tools.norm import Array


@dataclass
class Chain:
    """Batch normalizations in a row, as one: y = a * x + b, then the last one's activation."""

    nodes: list[Any]
    a: Array
    b: Array
    activation: Any = None


@dataclass
class Change:
    """What a linear layer takes in."""

    before: list[Chain] = field(default_factory=list)
    after: list[Chain] = field(default_factory=list)


class Graph(Protocol):
    """A model's graph as the decisions ask for it; a reason is a sentence's end, or None."""

    def norms(self) -> list[Any]:
        """The nodes of batch normalizations, in the order in which they run."""

    def layer(self, node: Any) -> Any:
        """What a node calls."""

    def name(self, node: Any) -> str:
        """The name of what a node calls."""

    def producer(self, node: Any) -> tuple[Any, str | None]:
        """The node that feeds this one, past what does nothing, and why it may not be changed."""

    def consumer(self, node: Any) -> tuple[Any, str | None]:
        """The one node that this one feeds, past what does nothing, or why there is none."""

    def why_never(self, node: Any) -> str | None:
        """Why a normalization is not y = a * x + b of one input."""

    def affine(self, node: Any) -> tuple[Array, Array]:
        """a and b of y = a * x + b, in float64."""

    def activation(self, node: Any) -> Any:
        """The activation that a normalization applies itself; None for none."""

    def continues(self, before: Any, node: Any) -> bool:
        """Whether two normalizations in a row have the same channels and type."""

    def why_not_linear(self, node: Any, chain: Chain) -> str | None:
        """Why a node is no linear layer of the same channels and type."""

    def why_not_after(self, node: Any) -> str | None:
        """Why a linear layer is not linear in its outputs."""

    def why_not_before(self, node: Any, b: Array) -> str | None:
        """Why a normalization that adds b cannot move behind it, into the linear layer."""


class Decisions:
    """A model's folds, decided.

    Args:
        prefix: before the names of layers, for a model inside another.

    Attributes:
        folded, refused: as in `Folding`.
        changes: what linear layers take in, by their id.
        merged: chains that become one normalization, by the id of the first.
        gone: ids of layers that are left out.
    """

    def __init__(self, graph: Graph, prefix: str = "") -> None:
        self.folded: list[tuple[str, str]] = []
        self.refused: list[Refusal] = []
        self.changes: dict[int, Change] = {}
        self.merged: dict[int, Chain] = {}
        self.gone: set[int] = set()
        self._graph, self._prefix = graph, prefix
        for chain in self._chains():
            self._place(chain)

    def _chains(self) -> list[Chain]:
        """The normalizations that may be folded at all, neighbors as one; refuses the others."""
        chains: list[Chain] = []
        graph = self._graph
        for node in graph.norms():
            if reason := graph.why_never(node):
                self.refuse(graph.name(node), reason)
                continue
            a, b = graph.affine(node)
            before, blocked = graph.producer(node)
            previous = next((one for one in chains if one.nodes[-1] is before), None)
            if (
                previous is not None
                and not blocked
                and previous.activation is None
                and graph.continues(before, node)
            ):
                previous.a, previous.b = a * previous.a, a * previous.b + b
                previous.nodes.append(node)
                previous.activation = graph.activation(node)
            else:
                chains.append(Chain([node], a, b, graph.activation(node)))
        return chains

    def _place(self, chain: Chain) -> None:
        """Puts a chain into a layer, or refuses it."""
        target, not_before = self._linear_before(chain)
        if target is not None:
            self._change(target).after.append(chain)
            self._note(chain.nodes, target)
            return
        target, not_behind = self._linear_behind(chain)
        if target is not None:
            self._change(target).before.append(chain)
            self._note(chain.nodes, target)
            return
        first, *rest = chain.nodes
        if rest and chain.activation is None:
            self.merged[id(self._graph.layer(first))] = chain
            self._note(rest, first)
            rest = []
        reason = (
            f"not into what is before it: {not_before}; not into what is behind it: {not_behind}"
        )
        for node in (first, *rest):
            self.refuse(self._graph.name(node), reason)

    def _change(self, node: Any) -> Change:
        return self.changes.setdefault(id(self._graph.layer(node)), Change())

    def _linear_before(self, chain: Chain) -> tuple[Any, str]:
        node, reason = self._graph.producer(chain.nodes[0])
        reason = self._graph.why_not_linear(node, chain) or reason
        reason = reason or self._graph.why_not_after(node)
        return (node, "") if reason is None else (None, reason)

    def _linear_behind(self, chain: Chain) -> tuple[Any, str]:
        if chain.activation is not None:
            return None, "it ends in an activation of its own"
        node, reason = self._graph.consumer(chain.nodes[-1])
        if reason is not None:
            return None, reason
        reason = self._graph.why_not_linear(node, chain)
        reason = reason or self._graph.why_not_before(node, chain.b)
        return (node, "") if reason is None else (None, reason)

    def _note(self, nodes: list[Any], target: Any) -> None:
        for node in nodes:
            self.gone.add(id(self._graph.layer(node)))
            names = (self._graph.name(node), self._graph.name(target))
            self.folded.append((self._prefix + names[0], self._prefix + names[1]))

    def refuse(self, name: str, reason: str) -> None:
        """Notes that a layer stays, once."""
        refusal = Refusal(self._prefix + name, reason)
        if refusal not in self.refused:  # a shared layer has several nodes
            self.refused.append(refusal)
