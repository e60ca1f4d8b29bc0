"""A batch as the arguments of a PyTorch module's `forward`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple


class Arguments(NamedTuple):
    """What `forward` is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def unwrapped(module: Any) -> Any:
    """The user's own module inside `torch.compile` and data-parallel wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__.endswith("DataParallel"):
            inner = getattr(module, "module", None)
        if inner is None:
            return module
        module = inner


def arguments_of(module: Any, batch: Any, owner: str) -> Arguments:
    """The arguments of `forward` that a batch holds.

    A mapping whose keys are names of `forward`'s parameters is passed by name, without the keys
    that `forward` does not know. Of a tuple or list the first n are passed, where n is how many
    arguments `forward` asks for; where the first is a tuple itself (`((a, b), labels)`), the first
    n of that. Whatever else there is counts as labels. Everything else is the one argument.

    Raises:
        TypeError: `forward` asks for more than there is.
    """
    parameters = _parameters(module)
    needed = [one for one in parameters if one.default is one.empty and one.kind in _BY_PLACE]
    if isinstance(batch, (tuple, list)):
        first = batch[0] if batch else batch
        if isinstance(first, Mapping):
            return arguments_of(module, first, owner)
        if len(needed) <= 1:
            return _one(first)
        inner = isinstance(first, (tuple, list)) and len(first) >= len(needed)
        given = (first if inner else batch)[: len(needed)]
        if len(given) == len(needed):
            return Arguments(tuple(given), {})
    elif isinstance(batch, Mapping):
        names = {one.name for one in parameters if one.kind in _BY_NAME}
        everything = any(one.kind is one.VAR_KEYWORD for one in parameters)
        known = {key: one for key, one in batch.items() if everything or key in names}
        if all(one.name in known for one in needed) and known:
            return Arguments((), known)
        if len(needed) <= 1 and not known:
            return _one(batch)
    elif len(needed) <= 1:
        return _one(batch)
    words = ", ".join(one.name for one in needed)
    raise TypeError(
        f"{owner}: data must hold what {type(module).__name__}.forward asks for ({words}) in each "
        f"batch; got {_said(batch)}. Pass batches of tuples or dictionaries, or call=, a function "
        "of the model and a batch."
    )


def required(module: Any) -> set[str]:
    """The names of what `forward` cannot be called without."""
    return {
        one.name
        for one in _parameters(module)
        if one.default is one.empty and one.kind in _BY_PLACE
    }


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(module: Any) -> list[inspect.Parameter]:
    own = unwrapped(module)
    return list(inspect.signature(getattr(own, "forward", own.__call__)).parameters.values())


def _one(x: Any) -> Arguments:
    return Arguments((x,), {})


def _said(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dictionary of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"one {type(batch).__name__}"
