"""The linear layers of Keras that can take a batch normalization in, and the arithmetic of it.

In inference a batch normalization is y = a * x + b per channel. In float64, on NumPy arrays.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from batchnorm.tools.norm import Array

layers = keras.layers
CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
# Keras (3.15) has no groups in transposed convolutions.
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
# Exactly these: a subclass may do more in its call.
KNOWN = (layers.Dense, *CONVOLUTIONS, *DEPTHWISE, *SEPARABLE, *TRANSPOSED)


def is_linear(layer: Any) -> bool:
    return type(layer) in KNOWN


def channel_axis(layer: Any) -> int:
    """Where the layer has its channels, inputs and outputs alike: -1 or 1."""
    return 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1


class Weights:
    """A linear layer's weights in float64, with normalizations folded into them."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._kind = layer, type(layer)
        names = ["kernel"]
        if self._kind in SEPARABLE:
            names = ["depthwise_kernel", "pointwise_kernel"]
        self._values = {name: _array(getattr(layer, name)) for name in names}
        if layer.use_bias:
            self._values["bias"] = _array(layer.bias)
        else:
            self._values["bias"] = np.zeros(self._outputs())

    def after(self, a: Array, b: Array) -> None:
        """As if the outputs went through y = a * x + b."""
        values = self._values
        if self._kind in DEPTHWISE:
            kernel = values["kernel"]
            values["kernel"] = kernel * a.reshape(kernel.shape[-2:])
        elif self._kind in SEPARABLE:
            values["pointwise_kernel"] = values["pointwise_kernel"] * a
        elif self._kind in TRANSPOSED:
            values["kernel"] = values["kernel"] * a[:, None]
        else:
            values["kernel"] = values["kernel"] * a
        values["bias"] = values["bias"] * a + b

    def before(self, a: Array, b: Array) -> None:
        """As if the inputs had come through y = a * x + b."""
        values = self._values
        if self._kind in SEPARABLE:
            kernel = values["depthwise_kernel"]  # [*k, inputs, multiplier]
            constant = _over_window(kernel * b[:, None]).reshape(-1)
            pointwise = values["pointwise_kernel"].reshape(len(constant), -1)
            values["depthwise_kernel"] = kernel * a[:, None]
            added = constant @ pointwise
        elif self._kind in DEPTHWISE:
            kernel = values["kernel"]
            values["kernel"] = kernel * a[:, None]
            added = _over_window(kernel * b[:, None]).reshape(-1)
        elif self._kind in TRANSPOSED:  # [*k, filters, inputs]
            kernel = values["kernel"]
            values["kernel"] = kernel * a
            added = _over_window(kernel) @ b
        else:
            kernel = values["kernel"]  # [*k, inputs of a group, filters]
            per_filter = [self._by_filter(vector, kernel.shape) for vector in (a, b)]
            values["kernel"] = kernel * per_filter[0]
            added = _over_window(kernel * per_filter[1]).sum(0)
        values["bias"] = values["bias"] + added

    def put_into(self, layer: Any) -> None:
        """Stores them in a layer of the same kind that has a bias, cast to its type."""
        wide = layer.variable_dtype == "float64"
        for name, value in self._values.items():
            getattr(layer, name).assign(value if wide else value.astype(np.float32))

    def _outputs(self) -> int:
        if self._kind in DEPTHWISE:
            return math.prod(self._values["kernel"].shape[-2:])
        if self._kind is layers.Dense:
            return self._values["kernel"].shape[-1]
        return self._layer.filters

    def _by_filter(self, vector: Array, shape: tuple[int, ...]) -> Array:
        """A vector over the inputs as `[inputs of a group, filters]`."""
        each, filters = shape[-2:]
        groups = len(vector) // each
        return np.repeat(vector.reshape(groups, each).T, filters // groups, axis=1)


def why_not_before(layer: Any, b: Array) -> str | None:
    """Why a normalization of its inputs that adds b cannot move into the layer, or None."""
    if type(layer) is layers.Dense or not np.any(b):
        return None
    point = all(size == 1 for size in layer.kernel_size)
    if type(layer) in TRANSPOSED:
        if point and all(stride == 1 for stride in layer.strides):
            return None
        return (
            f"{layer.name!r} is transposed: its edges see fewer inputs, and so less of the offset"
        )
    if point or layer.padding == "valid":
        return None
    return (
        f"{layer.name!r} pads its input (padding={layer.padding!r}) with zeros that are not "
        "normalized"
    )


def _over_window(kernel: Array) -> Array:
    """The sum over the window: what a constant input gives. Shapes: `[*k, i, j]` -> `[i, j]`."""
    return kernel.reshape(-1, *kernel.shape[-2:]).sum(0)


def _array(variable: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(variable.value)).astype(np.float64)
