"""The options of a module: torch's conventions on this side, the core's behind it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from batchnorm._options import Options

# What torch's own modules do not have, with the default: nothing of it is on.
MODES: dict[str, Any] = {
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.01,
    "virtual_batch_size": None,
    "ghost_order": "strided",
    "adjustment": None,
    "synchronized": False,
    "pooled_moving_variance": False,
    "statistics": "auto",
    "update_statistics": "auto",
    "on_nonfinite": "skip",
    "zero_debias": False,
    "activation": None,
    "fused": None,
}
WATCHED = frozenset(("eps", "momentum", *MODES))  # a module that gets a new one plans anew


def named(synchronized: Any) -> Any:
    """A process group as its name: modules are copied, pickled and saved, and groups are not."""
    return getattr(synchronized, "group_name", synchronized)


def options_of(given: Mapping[str, Any], owner: str) -> Options:
    """The core's options for a module's attributes.

    Raises:
        TypeError, ValueError: one of them is not what it must be.
    """
    eps = given["eps"]
    number = isinstance(eps, numbers.Real) and not isinstance(eps, bool)
    if not number or not 0 <= eps < math.inf:
        raise ValueError(f"{owner}: eps must be a number >= 0; got {eps!r}.")
    modes = {name: given[name] for name in MODES}
    modes["renorm_momentum"] = _kept(given, "renorm_momentum", owner)
    return Options(
        axis=1,
        momentum=_kept(given, "momentum", owner),
        epsilon=float(eps),
        unbiased_moving_variance=True,
        owner=owner,
        **modes,
    )


def _kept(given: Mapping[str, Any], name: str, owner: str) -> float | None:
    """The share of the old value that a step keeps, from torch's share of the new one."""
    value = given[name]
    if value is None:
        return None
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError(
            f"{owner}: {name} must be a number in [0, 1] or None: the share of the new value in "
            f"the moving statistics; got {value!r}."
        )
    return 1 - float(value)
