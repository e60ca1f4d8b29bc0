"""The Keras names of the family: the same layer, with what Keras does not have by keyword."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import keras

from batchnorm.keras.base import BatchNormalizationBase
from batchnorm.keras.keywords import Keywords, SyncKeywords


@keras.saving.register_keras_serializable(package="batchnorm")
class BatchNormalization(BatchNormalizationBase):
    """`keras.layers.BatchNormalization` with every mode of `BatchNormalizationBase` by keyword."""

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Unpack[Keywords],
    ) -> None:
        super().__init__(
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
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="batchnorm")
class SyncBatchNormalization(BatchNormalization):
    """`BatchNormalization` with `synchronized=True`.

    Raises:
        TypeError: `synchronized` is given; use `BatchNormalization` to choose.
    """

    def __init__(self, *args: Any, **kwargs: Unpack[SyncKeywords]) -> None:
        if "synchronized" in kwargs:
            raise TypeError(
                "SyncBatchNormalization: synchronized must not be given, it is True; use "
                "BatchNormalization to choose."
            )
        super().__init__(*args, synchronized=True, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.synchronized is True:  # else somebody set it since: batchnorm.set_synchronized
            del config["synchronized"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SyncBatchNormalization:
        config = dict(config)
        synchronized = config.pop("synchronized", True)
        layer = super().from_config(config)
        layer.synchronized = synchronized
        return layer
