"""Batch normalization modules for flax: `BatchNorm` for nnx, `batchnorm.flax.linen` for linen."""

from batchnorm.flax.modules import BatchNorm

__all__ = ["BatchNorm"]
