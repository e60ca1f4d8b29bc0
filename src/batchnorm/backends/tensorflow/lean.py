"""The composite path of TensorFlow, and what gives a function the total derivative by a formula.

A derivative of the derivative differentiates its formula: so what a first one keeps for the
backward pass is x and vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batchnorm._moments import Moments
from batchnorm.backends import composite, derivative
from batchnorm.backends.composite import Case
from batchnorm.backends.derivative import Slopes
from batchnorm.backends.tensorflow import operations
from batchnorm.backends.tensorflow.place import compiles_with_xla

Derivative = Callable[[Any, Any, Any, Any], Slopes]  # of x, dy, scale and offset


def standardize(
    x: tf.Tensor,
    case: Case,
    used: Moments,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    live: tf.Tensor | None = None,
    replicas: Any = None,
    centered: tf.Tensor | None = None,
) -> tf.Tensor:
    """y, whose derivative is the total one; see `composite.standardize`."""
    # XLA may add twice, with another rounding
    plain = used if compiles_with_xla() else _settled(used)

    def forward(x: tf.Tensor, scale: Any, offset: Any) -> tf.Tensor:
        return composite.standardize(operations, x, case, plain, scale, offset)

    def backward(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        how = (live, False, replicas)
        return derivative.backward(operations, x, dy, case, used, scale, offset, *how)

    def exact(x: tf.Tensor, dy: tf.Tensor, scale: Any, offset: Any) -> Slopes:
        moving = derivative.attached(operations, x, case, used, live, replicas)
        how = (live, False, replicas)
        return derivative.backward(operations, x, dy, case, moving, scale, offset, *how)

    return derived(forward, backward, exact, x, scale, offset)


def _settled(used: Moments) -> Moments:
    """The mean as the moving one will be, and what is left where x - mean does not round it away.

    So statistics that have converged to the batch's normalize to the same numbers.
    """
    assert used.remainder is not None
    mean = used.mean + used.remainder
    rest = (used.mean - mean) + used.remainder
    rounding = 2.0 ** (-52 if operations.dtype(mean) == "float64" else -23)
    tiny = rest * rest <= rounding**2 * used.variance
    return used._replace(mean=mean, remainder=tf.where(tiny, tf.zeros_like(rest), rest))


def derived(
    forward: Callable[..., tf.Tensor],
    backward: Derivative,
    exact: Derivative,
    x: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
) -> tf.Tensor:
    """forward(x, scale, offset) with the derivative `backward`, and `exact` for further ones."""
    present = [one is not None for one in (scale, offset)]

    def filled(affine: tuple[tf.Tensor, ...]) -> tuple[Any, Any]:
        given = iter(affine)
        first, other = (next(given) if there else None for there in present)
        return first, other

    @operations.with_gradient
    def function(x: tf.Tensor, *affine: tf.Tensor) -> Any:
        return forward(x, *filled(affine)), lambda dy: pulled_back(x, dy, *affine)

    @operations.with_gradient
    def pulled_back(x: tf.Tensor, dy: tf.Tensor, *affine: tf.Tensor) -> Any:
        found = backward(x, dy, *filled(affine))

        def pulled(*upstream: tf.Tensor | None) -> Any:
            given = iter(upstream)
            slopes = Slopes(*(None if one is None else next(given) for one in found))
            return [
                one for one in second(exact, (x, dy, *filled(affine)), slopes) if one is not None
            ]

        return [one for one in found if one is not None], pulled

    return function(x, *(one for one in (scale, offset) if one is not None))


def second(exact: Derivative, at: tuple[Any, ...], upstream: Slopes) -> list[tf.Tensor | None]:
    """The derivative of `exact(*at)` in each of `at`; None for what is absent.

    Nothing is upstream of a result that nobody uses, as in the gradient of a loop.
    """
    # v1 loops hand values of the forward pass over as other tensors, of which no tape knows
    at = tuple(None if one is None else tf.identity(one) for one in at)
    with tf.GradientTape() as tape:
        tape.watch([one for one in at if one is not None])
        pairs = [
            (one, change)
            for one, change in zip(exact(*at), upstream, strict=True)
            if one is not None and change is not None
        ]
    values, changes = [one for one, _ in pairs], [change for _, change in pairs]
    sources = [one for one in at if one is not None]
    found = iter(tape.gradient(values, sources, changes, tf.UnconnectedGradients.ZERO))
    return [None if one is None else next(found) for one in at]
