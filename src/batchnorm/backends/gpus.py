"""What every framework asks of a GPU before the kernels run there, and how it says no."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from batchnorm._native.library import mode

OLDEST = (8, 0)  # compute capability: what the kernels are compiled and checked for
NEVER = "The environment variable BATCHNORM_KERNELS is never."


def lacking(
    device: str, capability: Callable[[], tuple[int, int]], modules: Mapping[str, tuple[str, str]]
) -> str | None:
    """What a device from NVIDIA, or its process, lacks for the kernels; None where nothing.

    Args:
        modules: what must be importable; what people call it, and what `pip install` takes.
    """
    if mode() == "never":
        return NEVER
    found = capability()
    if found < OLDEST:
        return (
            f"The GPU kernels need compute capability {OLDEST[0]}.{OLDEST[1]}; "
            f"{device} has {found[0]}.{found[1]}."
        )
    for module, (name, wanted) in modules.items():
        if importlib.util.find_spec(module) is None:
            return f"The GPU kernels need {name}, which is not installed: pip install '{wanted}'."
    return None


def distrust(compare: Callable[[], str | None], passing: Callable[[Exception], bool]) -> str | None:
    """Why the kernels are not trusted, where `compare` finds them wrong, or they do not run.

    An error that is `passing`, as where no memory is left, says nothing of the kernels: it is
    raised, and the next call asks again.
    """
    try:
        found = compare()
    except Exception as error:  # of Triton, its compiler, a driver: whatever it is, say it
        if passing(error):
            raise
        lines = str(error).strip().splitlines() or ["no message"]
        return f"A GPU kernel does not run here: {type(error).__name__}: {lines[0]}"
    return None if found is None else f"A GPU kernel gave wrong numbers at its first use: {found}."
