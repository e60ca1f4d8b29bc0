"""The keyword arguments of the layers that no signature names, for whoever checks types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from batchnorm._types import GhostOrder, OnNonfinite, Statistics, UpdateStatistics, ZeroDebias


class LayerKeywords(TypedDict, total=False):
    """What `keras.layers.Layer` takes besides what our layers name."""

    activity_regularizer: Any
    autocast: bool
    dtype: Any
    input_dim: int
    input_shape: Any


class Modes(LayerKeywords, total=False):
    """What Keras' own layer does not have, but for `synchronized`."""

    renorm: bool
    renorm_clipping: Mapping[str, Any] | None
    renorm_momentum: float | None
    fused: bool | None
    trainable: bool
    virtual_batch_size: int | None
    ghost_order: GhostOrder
    adjustment: Callable[[Any], tuple[Any, Any]] | None
    name: str | None
    unbiased_moving_variance: bool
    pooled_moving_variance: bool
    statistics: Statistics
    update_statistics: UpdateStatistics
    on_nonfinite: OnNonfinite
    zero_debias: ZeroDebias
    train_parameters: bool
    activation: Any


class Keywords(Modes, total=False):
    """What `BatchNormalization` takes besides the arguments that it names."""

    synchronized: Any


class SyncKeywords(Modes, total=False):
    """What `SyncBatchNormalization` takes."""

    axis: int | Sequence[int]
    momentum: float | None
    epsilon: float
    center: bool
    scale: bool
    beta_initializer: Any
    gamma_initializer: Any
    moving_mean_initializer: Any
    moving_variance_initializer: Any
    beta_regularizer: Any
    gamma_regularizer: Any
    beta_constraint: Any
    gamma_constraint: Any
