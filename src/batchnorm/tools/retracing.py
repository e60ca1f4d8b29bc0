"""Compiled Keras models that must take notice of changed layers: `trace_anew`."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

STEPS = ("train_function", "test_function", "predict_function")
_ASIDE = "_batchnorm_slots_aside"  # in an optimizer: slots of what is not trained for now


def trace_anew(layers: Iterable[Any]) -> None:
    """Every model that holds one of these Keras layers, at any depth, forgets its compiled steps.

    Options of a layer are constants in them. Where what is trainable has changed, the optimizer
    follows: it is built for what is trained now, with the slots that it had. A layer does not know
    the models around it: the garbage collector knows every model there is.
    """
    changed = {id(layer) for layer in layers}
    if not changed:
        return
    kind = sys.modules["keras"].Model
    for one in gc.get_objects():
        if not issubclass(type(one), kind) or not _has_trained_or_run(one):
            continue
        if any(id(layer) in changed for layer in one._flatten_layers()):
            for step in STEPS:
                setattr(one, step, None)
            _follow(one)


def _has_trained_or_run(model: Any) -> bool:
    if any(vars(model).get(step) is not None for step in STEPS):
        return True
    optimizer = vars(model).get("optimizer")
    return optimizer is not None and optimizer.built


def _follow(model: Any) -> None:
    """The model's optimizer built for what is trainable now.

    Keras' optimizers are built for one list of variables for good, and Keras asks to compile again
    after a change. A new one has the configuration, the counters and the slots of the old one;
    slots of variables that are not trained for now are put aside for the time when they are.
    """
    old = vars(model).get("optimizer")
    if old is None or not old.built:
        return
    inner = getattr(old, "inner_optimizer", old)
    wanted = model.trainable_variables
    if [id(one) for one in inner._trainable_variables] == [id(one) for one in wanted]:
        return
    new = type(old).from_config(old.get_config())
    strategy = getattr(model, "distribute_strategy", None)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        new.build(wanted)
    aside = dict(getattr(old, _ASIDE, {}))
    held = _by_name(old)
    values = aside | {key: variable.value for key, variable in held.items()}
    for key, variable in _by_name(new).items():
        if key in values and values[key].shape == variable.shape:
            # a copy: JAX gives the arrays of the new one to its steps, which delete them
            variable.assign(sys.modules["keras"].ops.copy(values.pop(key)))
    setattr(new, _ASIDE, values)
    vars(model)["optimizer"] = new  # Keras assigns it untracked, too
    compiled = getattr(model, "_compile_config", None)  # what a file says of it
    if compiled is not None:  # a loss scale that `compile` put around it is not in there
        whole = compiled.config["optimizer"] is old
        compiled.config["optimizer"] = new if whole else getattr(new, "inner_optimizer", new)


def _by_name(optimizer: Any) -> dict[tuple[str, int], Any]:
    """The optimizer's variables by name, those of one name by their order.

    The name of a slot has the path of what it is a slot of; its own path has whatever scope the
    optimizer was built in.
    """
    seen: dict[str, int] = defaultdict(int)
    result = {}
    for variable in optimizer.variables:
        result[variable.name, seen[variable.name]] = variable
        seen[variable.name] += 1
    return result
