"""flax's linen modules under the names of `Norm`: a module and its variables, which are copied.

A linen module holds nothing and cannot be changed. What `transfer` gives to one is in new
variables; options must be right in the code that makes the module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
from flax import linen, nnx

from batchnorm.tools.norm_nnx import NnxNorm, OwnNnxNorm

COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
Tree = dict[str, Any]


class Linen:
    """`(module, variables)`, and behind them what the module is called with.

    Attributes:
        norms: the batch normalizations, in the order of their first call.
    """

    def __init__(self, pair: tuple[Any, ...], owner: str) -> None:
        self.module, self._variables, *self.args = pair
        self._owner = owner
        self.norms: list[Any] = []
        if isinstance(self.module, linen.BatchNorm):
            self._add(self.module, ())
        elif self.args:
            self.run(self.args, lambda path, module, x: self._add(module, path))
        else:
            raise ValueError(
                f"{owner}: a linen module that holds others must come with what it is called "
                f"with, (module, variables, x, ...); got {type(self.module).__name__} without: "
                "only a call tells its layers."
            )

    def run(self, args: Any, seen: Callable[[tuple[str, ...], Any, Any], Any]) -> None:
        """Calls the module in inference; `seen(path, module, x)` at each normalization."""

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__":
                seen(context.module.path, context.module, args[0] if args else kwargs["x"])
            return call(*args, **kwargs)

        if isinstance(self.module, linen.BatchNorm):
            seen((), self.module, args[0])
            return
        with linen.intercept_methods(intercept):
            self.module.apply(self._variables, *args, mutable=["batch_stats"])

    def _add(self, module: Any, path: tuple[str, ...]) -> None:
        if all(one.place != path for one in self.norms):
            ours = sys.modules.get("batchnorm.flax.linen")
            own = ours is not None and isinstance(module, ours.BatchNorm)
            held = {name: _at(self._variables.get(name, {}), path) for name in COLLECTIONS}
            norm = (OwnLinenNorm if own else LinenNorm)(module, path, held)
            if norm.layer.mean[...].ndim != len(norm.axes_given()):
                raise ValueError(
                    f"{self._owner}: {norm.owner} must have variables of its own; got a mean of "
                    f"shape {norm.layer.mean[...].shape}, as nn.scan and nn.vmap stack them."
                )
            self.norms.append(norm)

    def variables(self) -> Tree:
        """The variables as they are now, in a tree of its own."""
        tree: Tree = jax.tree.map(lambda leaf: leaf, _plain(self._variables))
        for norm in self.norms:
            for collection, new in norm.state().items():
                if new:
                    _at(tree[collection], norm.place).update(new)
        return tree


class LinenNorm(NnxNorm):
    """flax's own `linen.BatchNorm`; `layer` has its attributes, and its variables as nnx has them.

    Attributes:
        module: the linen module, apart from the one that holds it.
        place: its path in the variables.
    """

    framework = "flax"
    takes = frozenset()

    def __init__(self, module: Any, path: tuple[str, ...], held: dict[str, Tree]) -> None:
        self.place = path
        self.module = module.clone(parent=None, name=None, use_running_average=None)
        fields = {name: getattr(module, name) for name in type(module).__dataclass_fields__}
        variables: dict[str, Any] = {"scale": None, "bias": None} | {
            name: kind(value)
            for collection, kind in COLLECTIONS.items()
            for name, value in held[collection].items()
        }
        layer = SimpleNamespace(**(fields | variables))
        super().__init__(layer, ".".join(path) or type(module).__name__)
        self.stances = (self.stance(),)

    @property
    def owner(self) -> str:
        return f"{type(self.module).__name__} {self.name!r}"

    def axes_given(self) -> tuple[int, ...]:
        axis = self.layer.axis
        return (axis,) if isinstance(axis, int) else tuple(axis)

    def held(self, kind: Any) -> Tree:
        """The variables of a kind, by flax's names."""
        return {name: one[...] for name, one in vars(self.layer).items() if isinstance(one, kind)}

    def state(self) -> Tree:
        """The variables as linen has them."""
        return {collection: self.held(kind) for collection, kind in COLLECTIONS.items()}

    def apply(self, state: Tree, x: Any, training: bool) -> tuple[Any, Tree]:
        """The module's own outputs, and its statistics behind the call."""
        y, new = self.module.apply(
            state, x, use_running_average=not training, mutable=["batch_stats"]
        )
        return y, new.get("batch_stats", {})

    def remember(self, new: Tree) -> None:
        for name, value in new.items():
            getattr(self.layer, name)[...] = value


class OwnLinenNorm(LinenNorm, OwnNnxNorm):
    """A module of batchnorm.flax.linen."""


def _plain(tree: Any) -> Any:
    """Dictionaries all the way down, copies of them."""
    return {k: _plain(v) for k, v in tree.items()} if hasattr(tree, "items") else tree


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree.get(part, {})
    return tree
