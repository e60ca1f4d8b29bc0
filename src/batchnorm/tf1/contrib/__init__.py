"""`tf.contrib`, as far as it is about batch normalization."""

from batchnorm.tf1.contrib import layers

__all__ = ["layers"]
