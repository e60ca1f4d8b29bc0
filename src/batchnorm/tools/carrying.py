"""What one layer hands to another, checked before anything is changed: `changes`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm.tools.norm import AUTO, HELD, Array, Norm, Stance

# Options that decide which variables a layer has: a layer that was built keeps them.
BUILT = ("renorm", "zero_debias")
# What is no option while another one is off.
ONLY_WITH = {
    "renorm_clipping": "renorm",
    "renorm_momentum": "renorm",
    "ghost_order": "virtual_batch_size",
    "pooled_moving_variance": "virtual_batch_size",
}


@dataclass(frozen=True)
class Changes:
    """What becomes of the target.

    Attributes:
        options: by name, those that become other ones.
        stance: what it will normalize with and remember.
        trains: whether gamma and beta will be trained; None leaves that to the target.
        parameters, memory: values of each channel.
        updates: how many updates were counted; None leaves the target's.
        factor: what the variance was multiplied with, for the target's convention.
    """

    options: dict[str, Any]
    stance: Stance | None
    trains: bool | None
    parameters: tuple[Array | None, Array | None]
    memory: dict[str, Array]
    updates: int | None
    factor: float

    def apply(self, target: Norm) -> Callable[[], None]:
        """Makes them; returns what undoes them."""
        before = target.options(), target.memory(), target.host_parameters()
        mode = target.mode()

        def undo() -> None:
            for name in self.options:
                target.set_option(name, before[0][name])
            target.set_mode(mode)
            target.set_memory(before[1])
            target.set_host_parameters(*before[2])

        try:
            for name, value in self.options.items():
                target.set_option(name, value)
            if self.stance is not None and self.stance != target.stance():
                target.take_stance(self.stance)
            if self.trains is not None and self.trains != target.trains():
                target.freeze("parameters", not self.trains)
            target.put(self.memory)
            target.set_host_parameters(*self.parameters)
            if self.updates is not None:
                target.set_updates(self.updates)
        except BaseException:
            undo()
            raise
        return undo


def changes(source: Norm, target: Norm, values: float | None) -> Changes:
    """What the target takes over.

    Args:
        values: how many values a channel has in a batch, where the conventions of the variance
            differ; None where nobody knows.

    Raises:
        ValueError: there is something that it cannot take.
    """
    _check_variables(source, target)
    options = _options(source, target)
    stance, trains = _stance(source, target), source.trains()
    if target.trains() is None:
        trains = None
    elif trains is not None and (reason := target.why_not_freeze("parameters")):
        if trains != (stance != HELD):
            raise ValueError(f"transfer: {reason} {source.owner} has only one of the two frozen.")
        trains = None
    memory, factor = _memory(source, target, options, values)
    parameters = source.host_parameters()
    return Changes(options, stance, trains, parameters, memory, source.updates(), factor)


def _check_variables(source: Norm, target: Norm) -> None:
    ours, theirs = target.sizes(), source.sizes()
    if ours != theirs:
        raise _cannot(source, target, "channels", _joined(theirs), _joined(ours))
    held = zip(("scale", "center"), source.host_parameters(), target.host_parameters(), strict=True)
    for (name, given, own), word in zip(held, ("gamma", "beta"), strict=True):
        if (given is None) != (own is None):
            rule = f"{'no ' if given is None else 'a '}{word}"
            raise _cannot(source, target, rule, None, "none" if own is None else "one", name)


def _options(source: Norm, target: Norm) -> dict[str, Any]:
    given, own = source.options(), target.options()
    changed = {}
    for name, value in given.items():
        switch = ONLY_WITH.get(name)
        if name == "unbiased_moving_variance" or (switch and not given[switch]):
            continue
        guard = name == "on_nonfinite" and name not in target.takes
        if _same(name, value, own[name]) or guard or _plain_guard(source, name):
            continue
        if name in BUILT or _other_variables(name, value, own[name]):
            raise _cannot(source, target, name, value, own[name])
        if not _can_take(source, target, name, value):
            raise _cannot(source, target, name, value, own[name])
        changed[name] = value
    return changed


def _plain_guard(source: Norm, name: str) -> bool:
    """A layer without guards says nothing on them: those of the target stay."""
    return name == "on_nonfinite" and name not in source.takes


def _other_variables(name: str, value: Any, own: Any) -> bool:
    return name == "renorm_momentum" and (value is None) != (own is None)


def _can_take(source: Norm, target: Norm, name: str, value: Any) -> bool:
    if name not in target.takes:
        return False
    if name == "momentum" and value is None:
        return target.cumulative
    if name == "renorm_clipping":
        parts: Any = (_clipping(value) or {}).values()
    else:
        parts = (value,)
    known = (numbers.Number, str, tuple, type(None))
    # functions and tensors are of their framework
    return source.framework == target.framework or all(isinstance(one, known) for one in parts)


def _stance(source: Norm, target: Norm) -> Stance | None:
    if source.framework == "TensorFlow 1":
        return None
    stance = source.stance()
    if target.stances is not None and stance not in target.stances:
        names = ("statistics", "update_statistics")
        for name, value, usual in zip(names, stance, AUTO, strict=True):
            if value != usual:
                raise _cannot(source, target, name, value, usual)
    return stance


def _memory(
    source: Norm, target: Norm, options: dict[str, Any], values: float | None
) -> tuple[dict[str, Array], float]:
    """What is remembered, in the target's convention of the variance, and what that was times."""
    memory, factor = dict(source.host_memory()), 1.0
    epsilon = options.get("epsilon", target.epsilon)
    stated = source.options().get("unbiased_moving_variance")
    if stated is not None and stated != target.unbiased:
        if "unbiased_moving_variance" in target.takes:
            options["unbiased_moving_variance"] = stated
        elif values is None:
            kinds = ("N, the values of a channel in a batch", "N - 1")
            raise ValueError(
                f"transfer: values must be the number of values that a channel has in a batch, "
                f"since {source.owner} remembers the variance divided by {kinds[stated]}, and "
                f"{target.owner} by {kinds[not stated]}; got None. Pass values=, or data, which "
                "shows them; or values=math.inf to keep the numbers as they are."
            )
        elif values != math.inf:
            factor = (values - 1) / values if stated else values / (values - 1)
            memory["moving_variance"] = memory["moving_variance"] * factor
    memory.setdefault("moving_stddev", np.sqrt(memory["moving_variance"] + epsilon))
    known = target.host_memory().keys() - {"skipped_updates"}
    return {name: value for name, value in memory.items() if name in known}, factor


def _same(name: str, given: Any, own: Any) -> bool:
    if name == "renorm_clipping":
        given, own = _clipping(given), _clipping(own)
        if given is None or own is None or given.keys() != own.keys():
            return given == own
        return all(_same("", value, own[key]) for key, value in given.items())
    if isinstance(given, numbers.Real) and isinstance(own, numbers.Real):
        alike = isinstance(given, bool) == isinstance(own, bool)
        return alike and math.isclose(given, own, rel_tol=1e-12)
    return given is own or (type(given) is type(own) and bool(given == own))


def _clipping(value: Any) -> dict[str, Any] | None:
    """`renorm_clipping` in one form: Keras has {} for none, flax a tuple of pairs."""
    pairs = value.items() if isinstance(value, Mapping) else (value or ())
    return {key: one for key, one in pairs if one is not None} or None


def _joined(sizes: tuple[int, ...]) -> str:
    return " x ".join("?" if size < 0 else str(size) for size in sizes)


def _cannot(
    source: Norm, target: Norm, name: str, value: Any, own: Any, argument: str | None = None
) -> ValueError:
    """The error of what the target does not have and cannot get."""
    if name == "channels":
        rule, came = f"{value} channels", f"{own}"
    elif argument is not None:
        rule, came = f"{name} ({argument})", f"{own}"
    else:
        rule, came = f"{name}={value!r}", f"{own!r}"
    if name == "channels" or argument is not None or name in BUILT or name == "renorm_momentum":
        remedy = "Build it so."
    elif name in target.takes and not (name == "momentum" and value is None):
        remedy = f"Functions and tensors do not go from {source.framework} to {target.framework}."
    elif not target.takes:
        remedy = "A linen module cannot be changed: write it in its constructor."
    else:
        remedy = "Its kind has no such option: use one of batchnorm's, or set the source's back."
    return ValueError(
        f"transfer: {target.owner} must have {rule}, as {source.owner} has; got {came}. {remedy}"
    )
