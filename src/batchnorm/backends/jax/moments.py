"""Moments as functions of x, and the composite path that is differentiated through them.

A moment's value is computed once, in whatever way is accurate, and is a constant. Its derivative is
attached afterwards, in JAX's own operations: so it exists forward, backward and at every order.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from batchnorm._axes import View
from batchnorm._moments import Moments
from batchnorm.backends import composite, steps
from batchnorm.backends.composite import Case, statistics_dtype
from batchnorm.backends.jax import operations
from batchnorm.backends.jax.meshes import varying_alike
from batchnorm.backends.jax.replicas import Replicas


def attached(
    x: jax.Array, view: View, weights: jax.Array | None, used: Moments, replicas: Any = None
) -> Moments:
    """`used`, constants, as a function of x, of which they were taken.

    Formula, with W the count and sums over a group's values, on all replicas:
        d mean = sum(w dx) / W, d variance = 2 sum(w (x - mean) dx) / W

    Edge cases: a group without values takes its moments from elsewhere, and they stay constant.

    Shapes: x as given to the layer, weights of the view's shape `split` but 1 on the axes.
    """
    x, weights, used = varying_alike((x, weights, used))
    mean, variance = _attached(view, replicas, x, weights, used)
    return used._replace(mean=mean, variance=variance)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attached(
    view: View, replicas: Replicas | None, x: Any, weights: Any, used: Moments
) -> tuple[Any, Any]:
    return used.mean, used.variance


@_attached.defjvp
def _change(view: View, replicas: Replicas | None, at: Any, change: Any) -> Any:
    x, weights, used = at
    # functions of x here too: that is the second derivative
    moments = _attached(view, replicas, x, weights, used)
    dtype = statistics_dtype(str(x.dtype))
    dx, centered = (jnp.asarray(view.apart(operations, one), dtype) for one in (change[0], x))
    for part in (moments[0], used.remainder):
        if part is not None:
            centered = centered - view.along(operations, part)
    if weights is not None:  # what is left out may be NaN
        absent = weights == 0
        dx = jnp.where(absent, 0, weights * dx)
        centered = jnp.where(absent, 0, centered)
    sums = [
        jnp.reshape(operations.sum(one, view.reduced), used.mean.shape)
        for one in (dx, 2 * centered * dx)
    ]
    if replicas is not None:
        sums = jnp.split(replicas.all_reduce(jnp.concatenate(sums, 1)), 2, 1)
    total = jnp.where(used.count == 0, 1, used.count)
    return moments, (sums[0] / total, sums[1] / total)


class Steps(steps.Steps):
    """The big steps in JAX's operations; a derivative keeps x and vectors, nothing of x's size.

    As with the kernels, moments are constants, and `standardize` has their derivative.
    """

    def moments(self, x: jax.Array, case: Case) -> tuple[Moments, None]:
        return super().moments(x, case)[0], None  # XLA sees itself what it computes twice

    def standardize(
        self,
        x: jax.Array,
        case: Case,
        used: Moments,
        scale: Any,
        offset: Any,
        live: Any = None,
        replicas: Any = None,
        centered: Any = None,
    ) -> jax.Array:
        def y_of(x: Any, weights: Any, used: Moments, scale: Any, offset: Any) -> jax.Array:
            # here, so that the parts of a derivative add up in the wide type
            wide = jnp.asarray(x, statistics_dtype(str(x.dtype)))
            moments = attached(wide, case.view, weights, used, replicas)
            inner = case._replace(weights=weights)
            y = composite.standardize(operations, wide, inner, moments, scale, offset)
            return jnp.asarray(y, x.dtype)

        operands = (x, case.weights, used, scale, offset)
        if not any(isinstance(one, jax.core.Tracer) for one in jax.tree.leaves(operands)):
            return y_of(*operands)
        return jax.checkpoint(y_of)(*operands)
