"""Who is calling TensorFlow's side, and where: what decides whether the kernels may run."""

from __future__ import annotations

import tensorflow as tf

from batchnorm.backends.callers import callers
from batchnorm.backends.loading import load_operators

UNAVAILABLE = load_operators("tensorflow")


def unavailable() -> str | None:
    """Why there are no kernels for the CPU, whatever is called."""
    return UNAVAILABLE


def why_not(x: tf.Tensor) -> str | None:
    """Why x cannot take the fused path, in a sentence; None where it can."""
    if UNAVAILABLE is None and compiles_with_xla():
        return "XLA (jit_compile=True) cannot hold the native kernels."
    if UNAVAILABLE is None and tf.config.list_physical_devices("GPU"):
        return "The native kernels run on the CPU; TensorFlow has a GPU here."
    return UNAVAILABLE


def traced(x: tf.Tensor) -> bool:
    """Whether what is called now becomes a program that may run elsewhere."""
    return not tf.executing_eagerly()


def recomputing() -> bool:
    """Whether `tf.recompute_grad` is calling again, which would update statistics twice.

    TensorFlow (2.21) sets no mark, so the callers' names have to tell.
    """
    return any(
        frame.f_code.co_name == "inner_recompute_grad" for frame in callers("custom_gradient.py")
    )


def compiles_with_xla() -> bool:
    """Whether a tf.function with jit_compile=True is being traced.

    A graph does not know what will compile it (TensorFlow 2.21); the tracer, which waits for it,
    holds the function's attributes.
    """
    if tf.executing_eagerly():
        return False
    options = (frame.f_locals.get("tracing_options") for frame in callers("tracing_compilation.py"))
    return any((getattr(one, "attributes", None) or {}).get("_XlaMustCompile") for one in options)
