"""JAX's forward mode, and what mixes it with reverse mode and vmap, on both paths in float64."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchnorm
import reference
from curvature import CASES, NAMES
from strategies import call_on

KERNELS, COMPOSITE = None, False


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("name", "fused"),
    [(name, KERNELS) for name in [*CASES, "inference"]]
    + [(name, COMPOSITE) for name in ("plain", "everything", "inference")],
)
def test_every_mode_has_both_directions_at_every_order(name: str, fused: bool | None) -> None:
    options: dict[str, Any] = dict(CASES.get(name, {}), training=name != "inference")
    rng = np.random.default_rng(3)
    call = call_on(rng, rng.normal(1.0, 2.0, (6, 4, 3)), renorm=options.get("renorm", False))
    at = {"x": call.x} | {k: v.astype("float64") for k, v in call.parameters.items()}
    state = {k: v.astype("float64") if v.dtype == "float32" else v for k, v in call.state.items()}
    directions = {key: rng.normal(size=value.shape) for key, value in at.items()}

    def y_of(x: Any, gamma: Any, beta: Any) -> Any:
        parameters = {"gamma": gamma, "beta": beta}
        return batchnorm.batch_norm(x, parameters, state, fused=fused, **options)[0]

    def loss(*arguments: Any) -> Any:
        y = y_of(*arguments)
        return (y * call.dy + y**3).sum()

    def slope(arguments: Any, along: Any) -> Any:
        return jax.jvp(loss, arguments, along)[1]

    @jax.jit
    def everything(arguments: Any, along: Any) -> Any:
        _, change = jax.jvp(y_of, arguments, along)
        _, product = jax.jvp(jax.grad(loss, (0, 1, 2)), arguments, along)  # forward over reverse
        _, curvature = jax.jvp(lambda *a: slope(a, along), arguments, along)  # forward twice
        backwards = jax.grad(slope)(arguments, along)  # reverse over forward
        return change, product, curvature, backwards

    found = everything(tuple(at[key] for key in NAMES), tuple(directions[key] for key in NAMES))
    change, product, curvature, backwards = jax.tree.map(np.asarray, found)

    fixed = {key: value for key, value in options.items() if key != "training"}
    if options.get("renorm"):  # r and d are constants of every derivative
        fixed["corrections"] = reference.renorm_corrections(at["x"], state, **fixed)

    def reference_at(step: float) -> list[Any]:
        moved = {key: at[key] + step * directions[key] for key in NAMES}
        given = (moved["x"], {key: moved[key] for key in ("gamma", "beta")}, state)
        fixed["training"] = options["training"]
        y = reference.batch_norm(*given, **fixed).y
        result = reference.batch_norm(*given, dy=call.dy + 3 * y**2, **fixed)
        return [y, result.dx, result.gradients["gamma"], result.gradients["beta"]]

    wanted = [(a - b) / 2e-5 for a, b in zip(reference_at(1e-5), reference_at(-1e-5), strict=True)]
    close(change, wanted[0])
    for one, two, expected in zip(product, backwards, wanted[1:], strict=True):
        close(one, expected)
        close(two, expected)
    pairs = zip(NAMES, wanted[1:], strict=True)
    along = (directions[key].ravel() @ one.ravel() for key, one in pairs)
    close(curvature, np.asarray(sum(along)))


def close(got: Any, wanted: Any) -> None:
    scale = max(np.abs(wanted).max(), 1e-3)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale)


# Below, the truth is the textbook's formula, differentiated by JAX.


def textbook(x: Any, gamma: Any, beta: Any) -> Any:
    mean = x.mean(0)
    return gamma * (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(0) + 1e-3) + beta


def ours(fused: bool | None) -> Any:
    def function(x: Any, gamma: Any, beta: Any) -> Any:
        _, state = batchnorm.init(x)
        parameters = {"gamma": gamma, "beta": beta}
        return batchnorm.batch_norm(x, parameters, state, training=True, fused=fused)[0]

    return function


RNG = np.random.default_rng(0)
X, GAMMA, BETA = RNG.normal(3, 2, (7, 3)), RNG.uniform(0.5, 2, 3), RNG.normal(size=3)


@pytest.mark.parametrize("fused", [KERNELS, COMPOSITE])
def test_the_hessian_of_a_network_is_exact(fused: bool | None) -> None:
    data, weights = RNG.normal(size=(7, 4)), RNG.normal(size=(4, 3))

    def hessian(normalize: Any) -> Any:
        def loss(weights: Any, gamma: Any) -> Any:
            return (jnp.tanh(normalize(data @ weights, gamma, BETA)) ** 2).sum()

        return jax.jit(jax.hessian(loss, (0, 1)))(weights, GAMMA)

    jax.tree.map(close, hessian(ours(fused)), hessian(textbook))


def mapped(normalize: Any) -> dict[str, Any]:
    """What vmap does inside and outside of derivatives, of one or of all operands."""

    def loss(x: Any, gamma: Any) -> Any:
        return (normalize(x, gamma, BETA) ** 3).sum()

    def total(xs: Any, gamma: Any) -> Any:
        return jax.vmap(loss, (0, None))(xs, gamma).sum()

    def y_of(x: Any, gamma: Any) -> Any:
        return normalize(x, gamma, BETA)

    def change(x: Any, dx: Any) -> Any:
        return jax.jvp(y_of, (x, GAMMA), (dx, GAMMA))[1]

    xs = jnp.stack([X, X[::-1] * 2, X**2])
    return {
        "vmap(grad)": jax.vmap(jax.grad(loss, (0, 1)), (0, None))(xs, GAMMA),
        "grad(vmap)": jax.grad(total, (0, 1))(xs, GAMMA),
        "grad(vmap) of gamma": jax.grad(total, 1)(xs, GAMMA),
        "vmap(jvp)": jax.vmap(change)(xs, xs**2),
        "vmap(jvp) of directions": jax.vmap(change, (None, 0))(X, xs),
        "jvp(vmap)": jax.jvp(jax.vmap(y_of, (0, None)), (xs, GAMMA), (xs**2, GAMMA))[1],
        "jvp(grad(vmap))": jax.jvp(jax.grad(total, (0, 1)), (xs, GAMMA), (xs**2, GAMMA))[1],
        "jacfwd": jax.jacfwd(y_of, (0, 1))(X, GAMMA),
        "jacrev": jax.jacrev(y_of, (0, 1))(X, GAMMA),
        "linearize": jax.linearize(y_of, X, GAMMA)[1](X**2, GAMMA),
        "transposed twice": jax.linear_transpose(jax.vjp(y_of, X, GAMMA)[1], jnp.asarray(X))(
            (jnp.asarray(X**2), jnp.asarray(GAMMA))
        )[0],
        "checkpoint": jax.jvp(jax.grad(jax.checkpoint(loss)), (X, GAMMA), (X**2, GAMMA))[1],
    }


@pytest.mark.parametrize("fused", [KERNELS, COMPOSITE])
def test_vmap_mixes_with_both_directions(fused: bool | None) -> None:
    got, wanted = (jax.jit(lambda f=f: mapped(f))() for f in (ours(fused), textbook))
    for name in wanted:
        jax.tree.map(close, got[name], wanted[name])


def targets(function: Any, *arguments: Any) -> list[str]:
    text = jax.jit(function).lower(*arguments).as_text()
    return re.findall(r"@batchnorm_(\w+)", text)


def test_both_directions_take_one_kernel_each() -> None:
    if batchnorm.why_not("jax"):
        pytest.skip("there are no kernels here")

    def loss(x: Any) -> Any:
        return (ours(KERNELS)(x, GAMMA, BETA) ** 2).sum()

    assert targets(jax.grad(loss), X) == ["forward", "backward"]
    assert targets(lambda x: jax.jvp(loss, (x,), (x,)), X) == ["forward", "backward"]


def test_a_derivative_of_the_composite_path_keeps_x_and_vectors() -> None:
    x = jnp.asarray(RNG.normal(size=(64, 5, 3)), "bfloat16")
    gamma = jnp.ones(3, "float32")
    _, pullback = jax.vjp(ours(COMPOSITE), x, gamma, gamma)
    kept = [one.nbytes for one in jax.tree.leaves(pullback) if hasattr(one, "nbytes")]
    assert sum(kept) <= 1.15 * x.nbytes
