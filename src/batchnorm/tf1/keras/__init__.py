"""`tf.compat.v1.keras`, as far as it is about batch normalization."""

from batchnorm.tf1.keras import layers

__all__ = ["layers"]
