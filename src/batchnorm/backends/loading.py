"""The kernels as operators of a framework, and why there are none where there are none."""

from __future__ import annotations

import functools
import importlib
import logging

from batchnorm._native.library import KernelsUnavailable, mode


@functools.cache
def load_operators(framework: str) -> str | None:
    """Loads the kernels as operators of a framework; a sentence that says why it could not.

    Raises:
        RuntimeError: BATCHNORM_KERNELS=require, and there are none.
    """
    try:
        importlib.import_module(f"batchnorm.backends.{framework}.kernels")
    except KernelsUnavailable as error:
        if mode() == "require":
            raise RuntimeError(
                f"batchnorm: BATCHNORM_KERNELS is require, and {framework} has no native kernels "
                f"here. {error}"
            ) from error
        if mode() == "auto":
            logging.getLogger("batchnorm").warning(
                "batchnorm runs %s without its native kernels, which is slower. %s",
                framework,
                error,
            )
        return str(error)
    return None
