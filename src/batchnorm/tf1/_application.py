"""One application of a TensorFlow 1 layer: the core's arithmetic, and the ops that remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from batchnorm._batch_norm import normalize
from batchnorm._options import Options
from batchnorm.tf1._variables import Variable, Vectors

v1 = tf.compat.v1
Tensor = Any


class Applied(NamedTuple):
    """The output, and what updates the moving mean and the moving variance; none in inference."""

    y: Tensor
    updates: list[Any]


class _History(NamedTuple):
    """What a graph knows of the applications that share variables; it is on the moving mean."""

    reads: dict[str, Tensor]
    updates: list[Any]
    within: Any  # the graph and its control flow: an op can wait only for one in the same
    after: Any  # the ops that everything here waits for
    in_place: bool


def apply(
    options: Options,
    inputs: Tensor,
    vectors: Vectors,
    training: bool | Tensor,
    *,
    at_once: bool,
    in_place: bool = False,
    mask: Any = None,
    batch_weights: Any = None,
    arithmetic: Callable[..., Any] = normalize,
) -> Applied:
    """Normalizes inputs, and makes the ops that update the state.

    Args:
        arithmetic: what computes the output and the new state, with `normalize`'s arguments.
        at_once: the updates run where they are written, see `_variables.updates_at_once`.
        in_place: computing the output, or a gradient through it, runs the updates.
    """
    parameters = {name: tf.convert_to_tensor(one) for name, one in vectors.parameters.items()}
    updating = training is not False and options.update_statistics is not False
    last = None if at_once or not updating else _previous(vectors, inputs, in_place)
    with v1.name_scope("normalize"):
        start = None
        if last is not None:
            with tf.control_dependencies([_operation(one) for one in last.updates]):
                start = _spread(_read(vectors.state), vectors)
        if last is not None and last.after == _waited_for():
            state = last.reads  # as the step began, whatever was updated since
        else:
            state = _read(vectors.state)
        y, new = arithmetic(
            options,
            inputs,
            parameters,
            _spread(state, vectors),
            training,
            mask,
            batch_weights,
            update_from=start,
        )
    y.set_shape(inputs.shape)
    if not updating:
        return Applied(y, [])
    updates = _remember(vectors.state, new)
    if not at_once:
        vectors.state["moving_mean"]._batchnorm_history = _History(
            state, updates, _control_flow(), _waited_for(), in_place
        )
        if in_place:
            y = _after(updates, y)
    return Applied(y, updates)


def _read(state: Mapping[str, Variable]) -> dict[str, Tensor]:
    """The values of variables now, which later assignments leave alone."""
    values = {}
    for name, variable in state.items():
        if _is_reference(variable):
            # the value of a variable of TensorFlow 1 is its memory, not a copy
            values[name] = tf.raw_ops.DeepCopy(x=tf.identity(variable))
        elif hasattr(variable, "read_value"):
            values[name] = variable.read_value()
        else:  # a custom getter made a tensor of it
            values[name] = tf.convert_to_tensor(variable)
    return values


def _is_reference(variable: Variable) -> bool:
    return variable.dtype != variable.dtype.base_dtype


def _spread(state: Mapping[str, Tensor], vectors: Vectors) -> dict[str, Tensor]:
    """The state as the core has it: local_step is one number here, one per channel there."""
    return {
        name: tf.fill(vectors.state["moving_mean"].shape, value) if name == "local_step" else value
        for name, value in state.items()
    }


def _remember(state: Mapping[str, Variable], new: Mapping[str, Tensor]) -> list[Any]:
    """Assignments of the new state: the two of the moving averages run all the others first."""
    first = []
    for name in ("renorm_mean", "renorm_stddev", "moving_stddev", "biased_mean", "local_step"):
        if name in state:
            # a channel that was not finite keeps its state; the step counts what the others saw
            value = tf.reduce_max(new[name]) if name == "local_step" else new[name]
            # only renorm's own two count: the originals number the moving mean behind them
            counted = name in ("renorm_mean", "renorm_stddev")
            first.append(_assign(state[name], value, "AssignMovingAvg" if counted else "Assign"))
    with tf.control_dependencies([_operation(one) for one in first]):
        variance = "AssignNewValue" if "moving_stddev" in state else "AssignMovingAvg"
        return [
            _assign(state["moving_mean"], new["moving_mean"], "AssignMovingAvg"),
            _assign(state["moving_variance"], new["moving_variance"], variance),
        ]


def _assign(variable: Variable, value: Tensor, name: str) -> Any:
    """Assigns, under the name that the update op has in the originals' graphs."""
    if _is_reference(variable):
        return v1.assign(variable, value, name=name)
    if name == "AssignNewValue":
        return variable.assign(value, name=name)
    with v1.name_scope(name):
        return variable.assign(value, name="AssignSubVariableOp")


def _operation(update: Any) -> Any:
    """The op of an assignment; under eager execution there is none to wait for."""
    return None if tf.executing_eagerly() else getattr(update, "op", update)


def _previous(vectors: Vectors, inputs: Tensor, in_place: bool) -> _History | None:
    """The last application of the same variables, if this one's updates come after its (D32).

    An update op runs those of earlier applications first: so two in one step give the answer of two
    steps, not one that depends on chance. In place that holds only where the earlier one needs no
    placeholder that this one does not need: fetching this output must not ask for more input.
    """
    last = getattr(vectors.state["moving_mean"], "_batchnorm_history", None)
    if last is None or last.within != _control_flow():
        return None
    if in_place or last.in_place:
        needed = _placeholders([_operation(one) for one in last.updates])
        if in_place != last.in_place or not needed <= _placeholders([inputs.op]):
            return None
    return last


def _control_flow() -> Any:
    graph = v1.get_default_graph()
    return graph, graph._get_control_flow_context()


def _waited_for() -> frozenset[str]:
    return frozenset(one.name for one in v1.get_default_graph()._current_control_dependencies())


def _placeholders(operations: list[Any]) -> set[str]:
    """The names of the placeholders that must be fed to run these ops."""
    seen: set[str] = set()
    found = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        if operation.type == "Placeholder":
            found.add(operation.name)
        waiting += [one.op for one in operation.inputs]
        waiting += operation.control_inputs
    return found


def _after(updates: list[Any], y: Tensor) -> Tensor:
    """y, once the updates have run; a gradient through it runs them too."""
    operations = [_operation(one) for one in updates]

    @tf.custom_gradient
    def identity(y: Tensor) -> Any:
        def gradient(dy: Tensor) -> Tensor:
            with tf.control_dependencies(operations):
                return tf.identity(dy)

        with tf.control_dependencies(operations):
            return tf.identity(y), gradient

    return identity(y)
