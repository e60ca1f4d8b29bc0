"""`tf.compat.v1.layers`: batch normalization in graphs and sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchnorm.tf1._batch_normalization import ONES, ZEROS, BatchNormalization
from batchnorm.tf1._layer import InputSpec

__all__ = ["BatchNormalization", "InputSpec", "batch_normalization"]


def batch_normalization(
    inputs: Any,
    axis: int | Sequence[int] = -1,
    momentum: Any = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = ZEROS,
    gamma_initializer: Any = ONES,
    moving_mean_initializer: Any = ZEROS,
    moving_variance_initializer: Any = ONES,
    beta_regularizer: Any = None,
    gamma_regularizer: Any = None,
    beta_constraint: Any = None,
    gamma_constraint: Any = None,
    training: Any = False,
    trainable: bool = True,
    name: str | None = None,
    reuse: Any = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, Any] | None = None,
    renorm_momentum: Any = 0.99,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Any:
    """`tf.compat.v1.layers.batch_normalization`: makes a `BatchNormalization` and calls it.

    Args:
        inputs: what is normalized; the other arguments are those of `BatchNormalization`.
        training: a bool, 0 or 1, or a scalar tensor such as a placeholder. True normalizes with the
            batch and makes two ops in the collection UPDATE_OPS, which the training step must run:

                with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
                    train = optimizer.minimize(loss)

        name: of the layer and its variable scope; `batch_normalization` and so on by default.
        reuse: True takes the variables of the layer of this name, AUTO_REUSE takes or makes them.

    Returns:
        A tensor of the inputs' shape and type.

    Raises:
        TypeError, ValueError: an argument is not what it must be.
        ValueError: `reuse` is True without a name (D45), or does not fit the variables there are.
        ValueError: the call is under eager execution without a variable store.
    """
    if reuse is True and name is None:
        raise ValueError(
            "batch_normalization: name must be given with reuse=True; got None. Name the layer "
            "whose variables are meant."
        )
    layer = BatchNormalization(
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        center=center,
        scale=scale,
        beta_initializer=beta_initializer,
        gamma_initializer=gamma_initializer,
        moving_mean_initializer=moving_mean_initializer,
        moving_variance_initializer=moving_variance_initializer,
        beta_regularizer=beta_regularizer,
        gamma_regularizer=gamma_regularizer,
        beta_constraint=beta_constraint,
        gamma_constraint=gamma_constraint,
        renorm=renorm,
        renorm_clipping=renorm_clipping,
        renorm_momentum=renorm_momentum,
        fused=fused,
        trainable=trainable,
        virtual_batch_size=virtual_batch_size,
        adjustment=adjustment,
        name=name,
        _reuse=reuse,
        _scope=name,
    )
    return layer(inputs, training=training)
