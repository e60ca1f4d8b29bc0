"""Batch normalization modules for PyTorch: torch's own, in every mode."""

from batchnorm.torch.conversion import Conversion, convert, revert
from batchnorm.torch.masks import mask_of_lengths
from batchnorm.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
    SyncBatchNorm,
)
from batchnorm.torch.presets import Ramp, preset

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conversion",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "Ramp",
    "SyncBatchNorm",
    "convert",
    "mask_of_lengths",
    "preset",
    "revert",
]
