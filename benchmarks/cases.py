"""What is measured: questions, sizes, and the settings that a process is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

FRAMEWORKS = ("torch", "jax", "tensorflow")
FAULTING = ("torch", "jax")  # TensorFlow keeps the memory that it was given

# Question, and what the report calls it.
QUESTIONS = {
    "kernels": "Kernels, over a copy of the same tensor",
    "frameworks": "Forward and backward, the framework's own over ours",
    "modes": "Modes, over our plain batch normalization; originals over ours",
    "activation": "BN + ReLU, our two steps over our one",
    "small": "One call on a small tensor, ours over the framework's own",
    "modules": "Modules of batchnorm.torch, a small call over torch's; torch's block over ours",
    "flax": "A jitted step of one module of batchnorm.flax, flax's over ours",
    "models": "A training step of a small ResNet, Keras' layer over ours",
    "synchronized": "Synchronized over one replica, over our plain batch normalization",
    "tf1": "TensorFlow 1 functions in a session, the originals over ours",
    "gpu": "NVIDIA GPU: ours over a copy, the framework's own over ours",
    "tools": "Tools, over a forward pass of a small ResNet over the same data",
}
# Questions about one framework.
ONLY = {"tf1": "tensorflow", "modules": "torch", "flax": "jax", "gpu": "torch"}
MODES = ("renorm", "ghost", "weights", "mask", "adjustment", "axes")
DTYPES = ("float32", "bfloat16")
LAYOUTS = ("first", "last")

# Environment variables that decide whether fresh outputs cost page faults: docs/performance.md.
MEMORY = {
    "default": {},
    "huge": {"THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "recycled": {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_ARENA_MAX": "1",  # JAX allocates in threads, whose own arenas hold 64 MB at most
    },
}

# A call meets no page faults, or thousands, by the luck of what was freed before: 5 ms or 20. Where
# both contenders run the same kernels, a ratio of minima would tell which was lucky once.
WITHOUT_FAULTS = {"modes": "recycled", "synchronized": "recycled"}


@dataclass(frozen=True)
class Size:
    """Sizes of an input: N samples, C channels, and H x W positions, none for a dense input."""

    n: int
    c: int
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "x".join(str(size) for size in (self.n, self.c, *self.positions))

    @property
    def per_channel(self) -> int:
        """Positions of one sample."""
        product = 1
        for size in self.positions:
            product *= size
        return product

    def shape(self, layout: str) -> tuple[int, ...]:
        """The tensor's shape: channels behind the samples, or behind everything."""
        if layout == "first":
            return (self.n, self.c, *self.positions)
        return (self.n, *self.positions, self.c)

    def layouts(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the layouts wanted that differ: a dense input has one, called last."""
        return wanted if self.positions else ("last",)

    def megabytes(self, dtype: str) -> float:
        return self.n * self.c * self.per_channel * item_bytes(dtype) / 1e6

    def of(self, dtype: str) -> Size:
        """The size with as many bytes as this one has in float32."""
        return replace(self, n=self.n * 4 // item_bytes(dtype))


def item_bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def size(text: str) -> Size:
    """`32x64` or `64x64x56x56` as a size.

    Raises:
        ValueError: it is neither.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,4}", text):
        raise ValueError(
            f"benchmarks: --sizes must be samples x channels x positions, such as 32x64 or "
            f"64x64x56x56; got '{text}'."
        )
    n, c, *positions = (int(part) for part in text.split("x"))
    return Size(n, c, tuple(positions))


# 8 KB, then 1, 6, 13, 26, 51, 103 and 206 MB in float32; 16-bit types take twice the samples.
FULL = (
    "32x64",
    "5x64x28x28",
    "32x256x14x14",
    "32x2048x7x7",
    "32x64x56x56",
    "64x64x56x56",
    "256x128x28x28",
    "256x64x56x56",
)
ODD = "64x60x56x56"  # channels that no vector divides: frameworks have another path for them
QUICK = ("32x64", "16x8x9x9")
MIDDLE = 20, 60  # megabytes of the questions that are about modes


@dataclass(frozen=True)
class Settings:
    """What one process measures, and how long it may take.

    Attributes:
        framework: The one it measures; "" for the kernels alone.
        repeats: Rounds over all contenders of a case.
        seconds: A case that took longer stops after five rounds, or after one that took far longer.
        memory: A key of MEMORY: what the environment of this process was set to.
    """

    question: str
    framework: str
    sizes: tuple[str, ...]
    dtypes: tuple[str, ...] = DTYPES
    layouts: tuple[str, ...] = LAYOUTS
    modes: tuple[str, ...] = MODES
    repeats: int = 21
    seconds: float = 10.0
    memory: str = "default"
    quick: bool = False

    def all_sizes(self) -> list[Size]:
        return [size(text) for text in self.sizes]


def jobs(
    questions: tuple[str, ...],
    frameworks: tuple[str, ...],
    memories: tuple[str, ...],
    sizes: tuple[str, ...],
    **common: Any,
) -> list[Settings]:
    """A process for each question and framework; where users' page faults count, one by memory."""

    def settings_of(question: str, framework: str) -> Iterator[Settings]:
        faults = question == "frameworks" and framework in FAULTING
        for memory in memories if faults else (WITHOUT_FAULTS.get(question, "default"),):
            yield Settings(question, framework, sizes, memory=memory, **common)

    return [
        one
        for question in questions
        for framework in frameworks_of(question, frameworks)
        for one in settings_of(question, framework)
    ]


def frameworks_of(question: str, frameworks: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the frameworks that a question is about; "" for the kernels alone."""
    if question == "kernels":
        return ("",)
    return tuple(one for one in frameworks if one == ONLY.get(question, one))


@dataclass(frozen=True)
class Case:
    """One measurement with all its contenders: `what` is done to which tensor.

    Where `what` is empty, the name of each of ours says it.
    """

    what: str
    size: Size
    dtype: str
    layout: str
    variant: str = "plain"

    def __str__(self) -> str:
        variant = "" if self.variant == "plain" else self.variant
        parts = (variant, self.what, f"{self.size} {self.dtype}", f"channels {self.layout}")
        return ", ".join(part for part in parts if part)


def middle_sizes(settings: Settings) -> list[Size]:
    """The sizes for modes: 25 and 51 MB; all that have positions where the user named others."""
    spatial = [one for one in settings.all_sizes() if one.positions]
    low, high = MIDDLE
    return [one for one in spatial if low < one.megabytes("float32") < high] or spatial
