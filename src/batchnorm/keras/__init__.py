"""Keras 3 layers, on Keras' own backend."""

from batchnorm.keras.base import BatchNormalizationBase
from batchnorm.keras.batch_normalization import BatchNormalization, SyncBatchNormalization
from batchnorm.tools.averaging import WeightAveraging
from batchnorm.tools.synchronization import set_synchronized

__all__ = [
    "BatchNormalization",
    "BatchNormalizationBase",
    "SyncBatchNormalization",
    "WeightAveraging",
    "set_synchronized",
]
