"""What a call cannot be given is refused in the name of the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import batchnorm
import engines


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"parameters": None}, "parameters must be a dictionary of tensors, as batchnorm.init "
         "makes it; got NoneType."),
        ({"state": []}, "state must be a dictionary of tensors, as batchnorm.init makes it; got "
         "list."),
        ({"gamma": 1.0}, "gamma must be a tensor of the framework of x; got float."),
        ({"beta": [0.0] * 3}, "beta must be a tensor of the framework of x; got list."),
        ({"moving_mean": 0.0}, "moving_mean must be a tensor of the framework of x; got float."),
        ({"num_updates": 0}, "num_updates must be a tensor of the framework of x; got int."),
        ({"residual": 3}, "residual must be a tensor of the framework of x; got int."),
        ({"mask": "all"}, "mask must be an array of numbers or bools; got 'all'."),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("fused", [None, False])
def test_what_is_no_tensor_is_named(
    engine: engines.Engine, fused: bool | None, given: dict[str, Any], words: str
) -> None:
    x = engine.tensor(np.ones((4, 3), "float32"))
    parameters, state = batchnorm.init(x)
    vectors = {name: one for name, one in given.items() if name in ("gamma", "beta")}
    remembered = {name: one for name, one in given.items() if name in state}
    call = {"parameters": parameters | vectors, "state": state | remembered}
    call |= {name: one for name, one in given.items() if name not in vectors | remembered}
    with pytest.raises(TypeError) as caught:
        batchnorm.batch_norm(x, training=True, fused=fused, **call)
    assert str(caught.value) == f"batch_norm: {words}"


def test_integer_parameters_and_complex_weights_are_refused(engine: engines.Engine) -> None:
    x = engine.tensor(np.ones((4, 3), "float32"))
    parameters, state = batchnorm.init(x)
    whole = parameters | {"gamma": engine.tensor(np.ones(3, "int32"))}
    with pytest.raises(TypeError, match="gamma must be of a floating-point type; got int32"):
        batchnorm.batch_norm(x, whole, state, training=True)
    weights = engine.tensor(np.ones(4, "complex64"))
    with pytest.raises(TypeError, match="batch_weights must be real; got complex64"):
        batchnorm.batch_norm(x, parameters, state, training=True, batch_weights=weights)
