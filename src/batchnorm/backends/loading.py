"""The kernels as operators of a framework; why there are none, and how that is said."""

from __future__ import annotations

import functools
import importlib
import logging
import re
import sys

from batchnorm._native.library import KernelsUnavailable, mode

# The releases that a binding knows: from the oldest it was tried with (tests/lowest.txt) to below
# the one that may break what it stands on: XLA's FFI, TensorFlow's C API, torch.library.
KNOWN = {"jax": ((0, 10), (1, 0)), "tensorflow": ((2, 20), (3, 0)), "torch": ((2, 13), (3, 0))}


def unknown(framework: str) -> str | None:
    """Why the binding does not know this release of its framework; None where it does."""
    version = sys.modules[framework].__version__
    oldest, beyond = KNOWN[framework]
    if oldest <= tuple(map(int, re.findall(r"\d+", version)[:2])) < beyond:
        return None
    known = f"from {oldest[0]}.{oldest[1]} to below {beyond[0]}.{beyond[1]}"
    return (
        f"The kernels' binding knows {framework} {known}; got {version}. Install one of these, or "
        "a batchnorm that knows it."
    )


@functools.cache
def load_operators(framework: str) -> str | None:
    """Loads the kernels as operators of a framework; a sentence that says why it could not.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and there are none.
    """
    return said(framework, missing(framework))


@functools.cache
def missing(framework: str) -> str | None:
    """What `load_operators` does, for where it is not the only way: the user is told nothing."""
    try:
        if reason := unknown(framework):
            raise KernelsUnavailable(reason)
        importlib.import_module(f"batchnorm.backends.{framework}.kernels")
    except KernelsUnavailable as error:
        return str(error)
    return None


def said(place: str, reason: str | None) -> str | None:
    """The reason why a framework or a device has no kernels, which the user is told of.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and there is a reason.
    """
    if reason is not None and mode() == "require":
        raise RuntimeError(
            f"batchnorm: BATCHNORM_KERNELS is require, and {place} has no native kernels. {reason}"
        )
    if reason is not None and mode() == "auto":
        logging.getLogger("batchnorm").warning(
            "batchnorm runs on %s without its native kernels, which is slower. %s", place, reason
        )
    return reason
