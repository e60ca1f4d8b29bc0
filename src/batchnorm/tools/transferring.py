"""Batch normalization from one framework to another: `transfer`."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from batchnorm.tools.carrying import Changes, changes
from batchnorm.tools.data import Batches, Caller
from batchnorm.tools.forward import Call, Program
from batchnorm.tools.norm import Array, Norm
from batchnorm.tools.norms import find, is_keras, is_linen
from batchnorm.tools.retracing import trace_anew
from batchnorm.tools.transfers import Differences, Transfer, Transferred
from batchnorm.tools.trials import trial_of

BATCHES, STEPS = 3, 10  # of the proof
VALUES = 2**19  # of a layer's input that the proof keeps of a batch


class Side(NamedTuple):
    """A model and its batch normalizations; `linen` is None for other frameworks."""

    model: Any
    norms: list[Norm]
    linen: Any


def transfer(
    source: Any,
    target: Any,
    data: Any = None,
    *,
    mapping: Mapping[str, str] | None = None,
    values: float | None = None,
    batch_size: int = 32,
    call: Caller | None = None,
) -> Transfer:
    """Gives the batch normalization of one model to another, of any framework, and proves it.

    What goes over: gamma and beta, the moving statistics and what modes remember beside them, the
    count of updates, momentum (torch's share of the new value is one minus the others'), epsilon,
    the options of our layers, whether statistics and parameters are frozen. What the target cannot
    have is an error, before anything is changed. What is not said by a layer's numbers stays the
    target's: types, devices, layout, `fused`, `synchronized`, and the guard `on_nonfinite` where
    only one of the two has it. Other layers (convolutions) are not touched.

    The moving variance is the number that it is where both remember it alike, and where our Keras
    and flax layers can be told to (`unbiased_moving_variance`). Else one is divided by the number
    of values N, the other by N - 1, and the number is multiplied by (N - 1) / N or its inverse.

    Proof: with data, the source runs in inference, and the inputs of each of its layers go through
    both layers by themselves: in evaluation, and in ten steps of training on three batches by each
    framework's own gradients. Afterwards the layers are as before these steps.

    Args:
        source: a Keras model or layer, a PyTorch module, an nnx module, `(module, variables)` of
            linen, where the module holds others with what it is called with behind,
            `(module, variables, x, ...)`; or the path of a TensorFlow 1 checkpoint (its names are
            the scopes; it holds no options, so momentum and epsilon stay the target's).
        target: a built model of any of these but a checkpoint. Variables of linen are not changed:
            the new ones are `result.variables`.
        data: what the source is run with, as for `inspect`; three batches are read.
        mapping: names of the source to names of the target. Without it, names are matched where
            both models have the same; else layers go over in the order that the models have them.
        values: N, where the conventions of the variance differ. Data shows it too, layer by layer;
            `math.inf` keeps the numbers as they are.
        batch_size: rows of a batch, where data is not in batches yet.
        call: `call(model, batch)` calls the source, where it takes more than a batch.

    Raises:
        TypeError, ValueError: an argument is not what it must be, or the target cannot have what
            the source has. Nothing is changed then, nor where anything else is raised.
    """
    if isinstance(target, (str, os.PathLike)):
        raise TypeError(
            "transfer: target must be a model; got a path. A checkpoint is only read: load the "
            "model first."
        )
    number = isinstance(values, (int, float)) and not isinstance(values, bool)
    if values is not None and not (number and values > 1):
        raise ValueError(f"transfer: values must be a number above 1 or None; got {values!r}.")
    from_, to = _side(source, "source"), _side(target, "target")
    pairs = _pairs(from_, to, mapping)
    batches = _batches(from_, data, batch_size, call)
    inputs = _inputs(from_, batches) if batches is not None else {}
    measured = {index: one[0].values for index, one in inputs.items()}
    todo = [
        (index, one, other, changes(one, other, values or measured.get(index)))
        for index, one, other in pairs
    ]
    undo: list[Callable[[], None]] = []
    rows = []
    try:
        for _, _, other, change in todo:
            undo.append(change.apply(other))
        fresh = {norm.name: norm for norm in (to.norms if to.linen else _side(target, "").norms)}
        for index, one, other, change in todo:
            found = None
            if index in inputs:
                found = _proof(one, fresh[other.name], [seen.x for seen in inputs[index]])
            channels = len(one.host_statistics()[0])
            rows.append(Transferred(one.name, other.name, channels, _words(change, other), found))
    except BaseException:
        for back in reversed(undo):
            back()
        raise
    finally:
        trace_anew(norm.layer for norm in to.norms if is_keras(norm.layer))
    missed = [] if data is None else [b.name for index, _, b in pairs if index not in inputs]
    variables = to.linen.variables() if to.linen is not None else None
    return Transfer(tuple(rows), tuple(missed), variables)


def _side(model: Any, argument: str) -> Side:
    owner = "transfer"
    if isinstance(model, (str, os.PathLike)):
        from batchnorm.tools.norm_tf1 import scopes

        return Side(None, scopes(os.fspath(model), owner), None)
    if isinstance(model, tuple) and len(model) > 1 and is_linen(model[0]):
        from batchnorm.tools.norm_linen import Linen

        held = Linen(model, owner)
        if not held.norms:
            raise ValueError(
                f"transfer: {argument} must hold batch normalization; got "
                f"{type(held.module).__name__} without any."
            )
        return Side(held.module, held.norms, held)
    if is_linen(model):
        raise TypeError(
            f"transfer: {argument} must be (module, variables) for a linen module, which holds "
            f"nothing by itself; got {type(model).__name__}."
        )
    return Side(model, find(model, owner), None)


def _pairs(
    from_: Side, to: Side, mapping: Mapping[str, str] | None
) -> list[tuple[int, Norm, Norm]]:
    """Which layer goes where, with its place in the source."""
    ours = {norm.name: index for index, norm in enumerate(from_.norms)}
    theirs = {norm.name: norm for norm in to.norms}
    if mapping is None:
        mapping = _by_itself(list(ours), list(theirs), from_.model is None)
    for which, names, known in (
        ("source", mapping.keys(), ours),
        ("target", mapping.values(), theirs),
    ):
        if wrong := [name for name in names if name not in known]:
            raise ValueError(
                f"transfer: mapping must name layers of the {which}; got {wrong[0]!r}. It has "
                f"{_some(known)}."
            )
    twice = [name for name, count in Counter(mapping.values()).items() if count > 1]
    if twice or not mapping:
        raise ValueError(
            "transfer: mapping must give each layer of the target one of the source; got "
            f"{f'several for {twice[0]!r}' if twice else 'an empty one'}."
        )
    return [(ours[name], from_.norms[ours[name]], theirs[other]) for name, other in mapping.items()]


def _by_itself(ours: list[str], theirs: list[str], checkpoint: bool) -> dict[str, str]:
    if set(ours) == set(theirs):
        return {name: name for name in ours}
    if len(ours) != len(theirs) or (checkpoint and len(ours) > 1):
        reason = "a checkpoint has no order" if checkpoint else "their numbers differ"
        raise ValueError(
            f"transfer: mapping must say which layer goes where, for {reason}; got None. The "
            f"source has {len(ours)}: {_some(ours)}; the target {len(theirs)}: {_some(theirs)}."
        )
    return dict(zip(ours, theirs, strict=True))


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = [repr(name) for name in names]
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


def _batches(from_: Side, data: Any, size: int, call: Caller | None) -> Batches | None:
    if data is None:
        return None
    if from_.model is None:
        raise ValueError(
            "transfer: data must be None for a checkpoint, which cannot be run; got "
            f"{type(data).__name__}."
        )
    if from_.linen is not None and call is not None:
        raise ValueError(
            "transfer: call must be None for linen, whose further arguments stand behind the "
            f"variables; got {call!r}."
        )
    return Batches(from_.model, data, size, BATCHES, "transfer", call)


class Seen(NamedTuple):
    """A layer's input `[..., C]`, or its first rows; and how many values a channel had."""

    x: Array
    values: int


def _inputs(from_: Side, batches: Batches) -> dict[int, list[Seen]]:
    """What reached each layer of the source, by its place; nothing for one that was not called."""
    found: dict[int, list[Seen]] = {}

    def keep(index: int, x: Any) -> None:
        found.setdefault(index, []).append(_seen(from_.norms[index], np.asarray(x)))

    if from_.linen is not None:
        places = {norm.place: i for i, norm in enumerate(from_.linen.norms)}
        for batch in batches:
            args = (batch, *from_.linen.args[1:])
            from_.linen.run(args, lambda path, module, x: keep(places[path], x))
    else:
        program = Program(from_.model, from_.norms, [_look], batches.call)
        for batch in batches:
            (results,) = program(batch, {})
            for index, calls in results.items():
                keep(int(index), calls[0][0])
    if not found and batches.total == 0:
        raise ValueError("transfer: data must hold at least one row; got none.")
    return found


def _look(call: Call) -> tuple[Any, Any]:
    return call.proceed(), (call.x,)


def _seen(norm: Norm, x: Array) -> Seen:
    axes = norm.axes(x.ndim)
    last = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    channels = math.prod(last.shape[x.ndim - len(axes) :])
    group = norm.group_size() or 1
    rows = max(1, VALUES // max(1, math.prod(last.shape[1:]) * group)) * group
    return Seen(np.array(last[: max(rows, 2)], np.float32), last.size // max(channels, 1))


def _proof(source: Norm, target: Norm, inputs: list[Array]) -> Differences:
    """How far outputs are apart; both layers are as before afterwards."""
    norms = (source, target)
    before = [(norm.memory(), norm.host_parameters()) for norm in norms]
    trials = [trial_of(norm) for norm in norms]
    random = np.random.default_rng(0)
    try:
        worst = [_apart([one.evaluated(x) for one in trials]) for x in inputs]
        evaluation, after = functools.reduce(np.maximum, worst), []
        for step in range(STEPS):
            x = inputs[step % len(inputs)]
            t = random.standard_normal(x.shape).astype(np.float32)
            trained = _apart([one.trained(x, t) for one in trials])
            evaluated = _apart([one.evaluated(x) for one in trials])
            after.append(np.maximum(trained, evaluated))
    finally:
        for norm, (memory, parameters) in zip(norms, before, strict=True):
            norm.set_memory(memory)
            norm.set_host_parameters(*parameters)
    return Differences(float(evaluation), float(after[0]), float(after[-1]))


def _apart(outputs: list[Array]) -> float:
    """The largest difference, relative to the largest output."""
    was, now = outputs
    with np.errstate(invalid="ignore"):
        same = (was == now) | (np.isnan(was) & np.isnan(now))
        largest = float(np.max(np.where(same, 0.0, np.abs(now - was)), initial=0.0))
    most = float(np.max(np.abs(was[np.isfinite(was)]), initial=0.0))
    return largest / most if most else largest


def _words(change: Changes, target: Norm) -> tuple[str, ...]:
    """What became other than in the source, or in the target: as the target's users write it."""
    scaled = () if change.factor == 1 else (f"variance times {change.factor:.6g}",)
    return scaled + tuple(
        f"{name}={target.said_momentum(value) if name.endswith('momentum') else repr(value)}"
        for name, value in change.options.items()
    )
