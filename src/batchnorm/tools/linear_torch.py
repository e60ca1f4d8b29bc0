"""The linear modules of PyTorch that can take a batch normalization in, and the arithmetic of it.

In inference a batch normalization is y = a * x + b per channel. In float64, on NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from batchnorm.tools.norm import Array

nn = torch.nn
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Exactly these: a subclass may do more in its forward.
KNOWN = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def outputs(module: Any) -> int:
    """How many channels come out."""
    size: int = getattr(module, "out_channels", None) or module.out_features
    return size


def inputs(module: Any) -> int:
    """How many channels go in."""
    size: int = getattr(module, "in_channels", None) or module.in_features
    return size


class Weights:
    """A linear module's weights in float64, with normalizations folded into them."""

    def __init__(self, module: Any) -> None:
        self._module, self._transposed = module, type(module) in TRANSPOSED
        self._groups = getattr(module, "groups", 1)
        self._weight = _array(module.weight)
        bias = module.bias
        self._bias = np.zeros(outputs(module)) if bias is None else _array(bias)

    def after(self, a: Array, b: Array) -> None:
        """As if the outputs went through y = a * x + b."""
        self._weight = self._weight * self._spread(a, of_inputs=False)
        self._bias = self._bias * a + b

    def before(self, a: Array, b: Array) -> None:
        """As if the inputs had come through y = a * x + b."""
        added = self._weight * self._spread(b, of_inputs=True)
        self._weight = self._weight * self._spread(a, of_inputs=True)
        window = added.reshape(*added.shape[:2], -1).sum(-1)
        if self._transposed:  # [inputs, outputs of a group]
            self._bias = (
                self._bias + window.reshape(self._groups, -1, window.shape[1]).sum(1).ravel()
            )
        else:  # [outputs, inputs of a group]
            self._bias = self._bias + window.sum(1)

    def _spread(self, vector: Array, of_inputs: bool) -> Array:
        """A vector over channels as it broadcasts to the weight."""
        first = of_inputs if self._transposed else not of_inputs
        if first:
            matrix = vector[:, None]
        else:  # the second dimension holds the channels of one group
            each = vector.reshape(self._groups, -1)
            matrix = np.repeat(each, self._weight.shape[0] // self._groups, axis=0)
        return matrix.reshape(*matrix.shape, *[1] * (self._weight.ndim - 2))

    def put_into(self, module: Any) -> None:
        """Stores them in the module, cast to its type; it has a bias then."""
        like = module.weight
        for name, value in (("weight", self._weight), ("bias", self._bias)):
            tensor = torch.as_tensor(value).to(like.device, like.dtype)
            setattr(module, name, nn.Parameter(tensor, requires_grad=like.requires_grad))


def why_not_before(module: Any, name: str, b: Array) -> str | None:
    """Why a normalization of its inputs that adds b cannot move into the module, or None."""
    if type(module) is nn.Linear or not np.any(b):
        return None
    point = all(size == 1 for size in module.kernel_size)
    if type(module) in TRANSPOSED:
        plain = (*module.padding, *module.output_padding, *(one - 1 for one in module.stride))
        if point and not any(plain):
            return None
        return f"{name!r} is transposed: its edges see fewer inputs, and so less of the offset"
    padding = module.padding
    none = padding == "valid" or (padding == "same" and point)
    if none or (not isinstance(padding, str) and not any(padding)):
        return None
    if module.padding_mode != "zeros":  # what it pads with is normalized too
        return None
    return f"{name!r} pads its input (padding={padding!r}) with zeros that are not normalized"


def _array(tensor: Any) -> Array:
    return tensor.detach().double().cpu().numpy()
