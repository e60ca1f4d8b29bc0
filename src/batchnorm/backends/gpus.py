"""What every framework asks of a GPU before the kernels run there, and how it says no."""

from __future__ import annotations

import importlib.util
import logging
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


def said(device: str, reason: str | None) -> str | None:
    """The reason why the kernels do not run on a device, which the user is told of.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and there is a reason.
    """
    if reason is not None and mode() == "require":
        raise RuntimeError(
            f"batchnorm: BATCHNORM_KERNELS is require, and {device} has no native kernels. {reason}"
        )
    if reason is not None and mode() == "auto":
        logging.getLogger("batchnorm").warning(
            "batchnorm runs on %s without its native kernels, which is slower. %s", device, reason
        )
    return reason


def distrust(
    compare: Callable[[], str | None], passing: type[BaseException] = MemoryError
) -> str | None:
    """Why the kernels are not trusted, where `compare` finds them wrong, or they do not run.

    An error of the type `passing` says nothing of the kernels, and the next call asks again.
    """
    try:
        found = compare()
    except passing:
        raise
    except Exception as error:  # of Triton, its compiler, a driver: whatever it is, say it
        lines = str(error).strip().splitlines() or ["no message"]
        return f"A GPU kernel does not run here: {type(error).__name__}: {lines[0]}"
    return None if found is None else f"A GPU kernel gave wrong numbers at its first use: {found}."
