"""The GPU's kernels under the names, and with the operands, by which `trust.py` compares them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from batchnorm.backends import trust
from batchnorm.backends.fused import Vectors
from batchnorm.backends.jax import gpu, operations


def _moments(x: Any, sizes: Any, weights: Any) -> Any:
    return gpu.moments(x, weights)


def _forward(x: Any, sizes: Any, weights: Any, *affine_and_how: Any) -> Any:
    return gpu.forward(x, weights, *affine_and_how)


def _standardize_add(x: Any, sizes: Any, residual: Any, weights: Any, *given: Any) -> Any:
    *vectors, epsilon, activation, _ = given
    return gpu.standardize(x, weights, Vectors(*vectors), epsilon, activation, residual)


def _backward(x: Any, sizes: Any, dy: Any, weights: Any, *given: Any) -> Any:
    *vectors, epsilon, activation, frozen = given
    return gpu.backward(x, dy, weights, Vectors(*vectors), epsilon, activation, frozen)


def _backward_sums(x: Any, sizes: Any, dy: Any, weights: Any, *given: Any) -> Any:
    mean, remainder, variance, scale, offset, epsilon, activation = given
    vectors = Vectors(mean, remainder, variance, None, scale, offset, None)
    return gpu.backward_sums(x, dy, weights, vectors, epsilon, activation)


def _backward_input(x: Any, sizes: Any, dy: Any, weights: Any, *given: Any) -> Any:
    *vectors, sum_dy, sum_dy_xh, epsilon, activation = given
    sums = (sum_dy, sum_dy_xh)
    return gpu.backward_input(x, dy, weights, Vectors(*vectors), sums, epsilon, activation)


KERNELS = {
    "moments": _moments,
    "forward": _forward,
    "standardize_add": _standardize_add,
    "backward": _backward,
    "backward_sums": _backward_sums,
    "backward_input": _backward_input,
}


def where(dtype: str) -> trust.Where:
    """JAX's default device, for tensors of a type."""
    return trust.Where(
        operations,
        KERNELS,
        dtype,
        lambda values, name: jnp.asarray(values).astype(name),
        lambda one: np.asarray(one).astype(np.float64),
    )
