"""Compiled passes kept with their model, and how a kept one is known to be stale."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchnorm.backends import why_not
from batchnorm.tools.data import Caller
from batchnorm.tools.forward import Program, Visit
from batchnorm.tools.norm import Norm
from batchnorm.tools.norms import is_keras

AT_MOST = 8  # programs of a model; the oldest goes first
DEEP = 4  # containers inside containers that are looked into
_NAME = "_batchnorm_programs"
# What training, evaluation and prediction leave in a model, and a forward pass never reads.
_OF_TRAINING = frozenset(
    (
        f"{_NAME} _called _eval_epoch_iterator evaluate _jax_state _jax_state_synced history "
        "predict_function stop_evaluating stop_predicting stop_training test_function "
        "train_function "
        # TensorFlow's list of what a checkpoint holds
        "_self_unconditional_checkpoint_dependencies _self_unconditional_dependency_names"
    ).split()
)


def program(
    model: Any,
    norms: Sequence[Norm],
    name: str,
    visits: Sequence[Visit],
    call: Caller | None = None,
) -> Program:
    """A program of these visitors: the one that an earlier call compiled, if it still holds.

    It is kept in the model's own dictionary, so that it goes where the model goes. Weights are
    arguments of a compiled pass, anything else is a constant in it: it is dropped once an attribute
    of some layer has another value. What an object in an attribute holds is not looked into.

    Args:
        name: tells the visitors from others of the same model. They must keep nothing of a call.
    """
    compiles = is_keras(model) and sys.modules["keras"].backend.backend() != "torch"
    if call is not None or not compiles:  # what a user's function holds cannot be compared
        return Program(model, norms, visits, call)
    now = _constants(model)
    before, programs = vars(model).get(_NAME, (None, {}))
    if before != now:
        programs = {}
    key = (name, *(id(norm.layer) for norm in norms))
    if key not in programs:
        if len(programs) == AT_MOST:
            del programs[next(iter(programs))]
        programs[key] = Program(model, norms, visits)
    vars(model)[_NAME] = now, programs  # Keras would track it if it were assigned
    return programs[key]


def _constants(model: Any) -> tuple[Any, ...]:
    """Everything of the model that a compiled pass may have as a constant, to be compared."""
    keras = sys.modules["keras"]
    layers = dict.fromkeys(model._flatten_layers(include_self=True, recursive=True))
    everywhere = (why_not(keras.backend.backend()), keras.config.floatx())
    return (*everywhere, *(_of_layer(layer) for layer in layers))


def _of_layer(layer: Any) -> tuple[Any, ...]:
    attributes = tuple(
        (name, _comparable(value, DEEP))
        for name, value in vars(layer).items()
        if name not in _OF_TRAINING
    )
    return _Same(layer), _Same(type(layer).call), attributes


class _Same:
    """Equal to nothing but another of the very same object, which it keeps alive."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value


def _comparable(value: Any, deep: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value), repr(value)  # 1 is not True, and NaN is NaN
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, str(value.dtype), value.tobytes()
    keras = sys.modules["keras"]
    if isinstance(value, keras.Variable):
        return _Same(value), tuple(value.shape), str(value.dtype)
    if isinstance(value, keras.DTypePolicy):
        return type(value), value.name
    if deep and isinstance(value, dict):
        pairs = ((_comparable(k, deep - 1), _comparable(v, deep - 1)) for k, v in value.items())
        return _Same(type(value)), tuple(pairs)
    if deep and isinstance(value, (list, tuple)):
        return _Same(type(value)), tuple(_comparable(one, deep - 1) for one in value)
    return _Same(value)
