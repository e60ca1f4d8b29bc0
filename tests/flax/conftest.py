"""nnx and linen behind one face: a module with its variables, called like a function."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen, nnx

import batchnorm.flax
import batchnorm.flax.linen


class Nnx:
    name = "nnx"
    theirs, ours = nnx.BatchNorm, batchnorm.flax.BatchNorm

    def __init__(self, ours: bool, features: int, **options: Any) -> None:
        self.module = (self.ours if ours else self.theirs)(features, rngs=nnx.Rngs(0), **options)

    def init(self, x: Any) -> None:
        """Nothing: an nnx module has its variables."""

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        for name, value in arrays.items():
            getattr(self.module, name)[...] = jax.numpy.asarray(value)

    def variables(self) -> dict[str, np.ndarray]:
        state = nnx.to_pure_dict(nnx.state(self.module))
        return {name: np.asarray(value) for name, value in state.items()}

    def tree(self) -> Any:
        leaves = jax.tree.leaves_with_path(nnx.state(self.module))
        return [(jax.tree_util.keystr(path), one.shape, str(one.dtype)) for path, one in leaves]

    def __call__(self, x: Any, training: bool = True, **given: Any) -> Any:
        return self.module(x, use_running_average=not training, **given)

    def step(self, x: Any, dy: Any, **given: Any) -> Any:
        """y, dx and the slopes of the parameters, in training."""

        def loss(module: Any, x: Any) -> Any:
            y = module(x, use_running_average=False, **given)
            return (y * dy).sum().astype("float32"), y

        arguments = (nnx.DiffState(0, nnx.Param), 1)
        (slopes, dx), y = nnx.jit(nnx.grad(loss, argnums=arguments, has_aux=True))(self.module, x)
        return y, dx, nnx.to_pure_dict(slopes)


class Linen:
    name = "linen"
    theirs, ours = linen.BatchNorm, batchnorm.flax.linen.BatchNorm

    def __init__(self, ours: bool, features: int, **options: Any) -> None:
        self.module = (self.ours if ours else self.theirs)(**options)
        self.held: Any = None

    def init(self, x: Any) -> None:
        self.held = self.module.init(jax.random.key(0), x, use_running_average=True)

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        for collection in self.held.values():
            for name in collection:
                collection[name] = jax.numpy.asarray(arrays[name])

    def variables(self) -> dict[str, np.ndarray]:
        return {k: np.asarray(v) for part in self.held.values() for k, v in part.items()}

    def tree(self) -> Any:
        leaves = jax.tree.leaves_with_path(self.held)
        return [(jax.tree_util.keystr(path), one.shape, str(one.dtype)) for path, one in leaves]

    def __call__(self, x: Any, training: bool = True, **given: Any) -> Any:
        y, new = self.module.apply(
            self.held, x, use_running_average=not training, mutable=["batch_stats"], **given
        )
        self.held = {**self.held, **new}
        return y

    def step(self, x: Any, dy: Any, **given: Any) -> Any:
        def loss(params: Any, x: Any, rest: Any) -> Any:
            y, new = self.module.apply(
                {"params": params, **rest},
                x,
                use_running_average=False,
                mutable=["batch_stats"],
                **given,
            )
            return (y * dy).sum().astype("float32"), (y, new)

        rest = {name: value for name, value in self.held.items() if name != "params"}
        gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        (slopes, dx), (y, new) = gradient(self.held.get("params", {}), x, rest)
        self.held = {**self.held, **new}
        return y, dx, slopes


@pytest.fixture(params=[Nnx, Linen], ids=["nnx", "linen"])
def api(request: pytest.FixtureRequest) -> Any:
    """`api(ours, features, **options)` makes a module."""
    return request.param
