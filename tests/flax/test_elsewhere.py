"""The function inside equinox and haiku, as docs/moving-from-flax.md says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import batchnorm

X = jnp.asarray(np.random.default_rng(0).normal(3, 2, (16, 3)), "float32")


def by_hand(x: Any) -> Any:
    """y and the moving variance after one step from the start."""
    x = np.asarray(x, "float64")
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), 0.99 + 0.01 * x.var(0)


def test_equinox() -> None:
    import equinox as eqx

    class Norm(eqx.Module):
        parameters: dict[str, jax.Array]
        index: Any

        def __init__(self, like: jax.Array) -> None:
            self.parameters, state = batchnorm.init(like)
            self.index = eqx.nn.StateIndex(state)

        def __call__(self, x: jax.Array, state: Any) -> Any:
            held = state.get(self.index)
            y, new = batchnorm.batch_norm(x, self.parameters, held, training=True)
            return y, state.set(self.index, new)

    norm, state = eqx.nn.make_with_state(Norm)(X)
    y, state = eqx.filter_jit(norm)(X, state)
    wanted, variance = by_hand(X)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    np.testing.assert_allclose(state.get(norm.index)["moving_variance"], variance, rtol=1e-5)


def test_haiku() -> None:
    import haiku as hk

    def normalize(x: Any, training: bool) -> Any:
        parameters, state = batchnorm.init(x)
        gamma = hk.get_parameter("gamma", parameters["gamma"].shape, init=jnp.ones)
        beta = hk.get_parameter("beta", parameters["beta"].shape, init=jnp.zeros)
        held = {
            name: hk.get_state(name, one.shape, one.dtype, init=lambda *_, one=one: one)
            for name, one in state.items()
        }
        given = {"gamma": gamma, "beta": beta}
        y, new = batchnorm.batch_norm(x, given, held, training=training)
        for name, value in new.items():
            hk.set_state(name, value)
        return y

    model = hk.without_apply_rng(hk.transform_with_state(normalize))
    parameters, state = model.init(jax.random.key(0), X, False)
    y, state = jax.jit(model.apply, static_argnums=3)(parameters, state, X, True)
    wanted, variance = by_hand(X)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    (found,) = (one["moving_variance"] for one in state.values())
    np.testing.assert_allclose(found, variance, rtol=1e-5)
