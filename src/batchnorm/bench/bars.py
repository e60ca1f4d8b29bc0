"""What the project promises, and whether a row keeps it: the table of the issue, as code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

from batchnorm.bench.row import Row

BIG = 25, 206  # megabytes


@dataclass(frozen=True)
class Bar:
    """One promise: every row that it is about has a ratio of at most, or at least, `limit`."""

    words: str
    about: Callable[[Row], bool]
    limit: float
    at_most: bool = False
    mean: float | None = None  # what the geometric mean of all rows must reach besides

    def met(self, row: Row) -> bool:
        return row.ratio <= self.limit if self.at_most else row.ratio >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


def _over_copy(what: str, layout: str, limit: float) -> Bar:
    where = "" if layout == "any" else f" channels-{layout}"
    return Bar(
        f"{what}{where}, over copy",
        lambda row: (
            (row.question, row.ours, row.what) == ("kernels", "ours", what)
            and layout in ("any", row.layout)
            and row.dtype == "float32"
            and _within(row, *BIG)
        ),
        limit,
        at_most=True,
    )


def _step(
    framework: str,
    peer: str,
    limit: float,
    within: tuple[float, float],
    words: str,
    *,
    layout: str = "any",
    dtype: str = "float32",
    what: str = "forward + backward",
    channels: Callable[[int], bool] = lambda c: True,
    mean: float | None = None,
) -> Bar:
    """A bar of the question `frameworks`. Page faults count: users meet them."""
    return Bar(
        f"{what}, {peer} over ours, {words}",
        lambda row: (
            row.question == "frameworks"
            and (row.framework, row.peer, row.what) == (framework, peer, what)
            and row.memory == "default"
            and row.dtype == dtype
            and layout in ("any", row.layout)
            and channels(row.channels)
            and _within(row, *within)
        ),
        limit,
        mean=mean,
    )


def _mode(words: str, variants: tuple[str, ...], limit: float) -> Bar:
    return Bar(
        f"{words}, over our plain",
        lambda row: (
            row.question == "modes"
            and row.peer == "ours, plain"
            and row.variant in variants
            and row.dtype == "float32"
            and _within(row, 25, 26)
        ),
        limit,
        at_most=True,
    )


def _original(variant: str, limit: float) -> Bar:
    return Bar(
        f"{variant}, tf_keras over ours",
        lambda row: (
            row.question == "modes"
            and (row.peer, row.variant) == ("tf_keras", variant)
            and _within(row, 25, 52)
        ),
        limit,
    )


def _small(framework: str, limit: float) -> Bar:
    return Bar(
        f"small tensors, ours over {framework}'s own",
        lambda row: (row.question, row.framework, row.size) == ("small", framework, "32x64"),
        limit,
        at_most=True,
    )


def _model(framework: str, limit: float) -> Bar:
    return Bar(
        f"a step of a small ResNet on {framework}",
        lambda row: (
            (row.question, row.framework, row.ours) == ("models", framework, "ours")
            and row.size == "128x3x32x32"
        ),
        limit,
    )


def _tool(name: str, framework: str, variant: str, limit: float) -> Bar:
    layers = {"ours": "our layers", "keras": "Keras' own", "modules": "plain modules"}[variant]
    return Bar(
        f"{name} with {layers} on {framework}, over a forward pass",
        lambda row: (
            (row.question, row.what, row.framework) == ("tools", name, framework)
            and (row.variant, row.size) == (variant, "32x3x32x32")
        ),
        limit,
        at_most=True,
    )


def _within(row: Row, low: float, high: float) -> bool:
    return low <= row.megabytes <= high


def _tf1(words: str, variants: tuple[str, ...], limit: float) -> Bar:
    return Bar(
        f"TensorFlow 1 functions, {words}",
        lambda row: row.question == "tf1" and row.variant in variants and _within(row, 25, 26),
        limit,
    )


BARS = (
    _over_copy("forward", "first", 1.3),
    _over_copy("forward", "last", 1.65),
    _over_copy("backward", "first", 2.2),
    _over_copy("backward", "last", 2.8),
    _over_copy("inference", "any", 1.1),
    _step("torch", "torch eager", 2.5, (1, 206), "channels-first", layout="first"),
    _step("torch", "torch eager", 1.4, (1, 206), "channels-last", layout="last"),
    _step("torch", "torch eager", 1.9, (1, 206), "bfloat16", dtype="bfloat16"),
    _step("torch", "torch.compile", 1.7, (1, 26), "1 to 25 MB"),
    _step("jax", "jax.jit", 2.5, (1, 13), "to 13 MB"),
    _step("jax", "jax.jit", 4, BIG, "from 25 MB"),
    _step("jax", "jax.jit", 7, (1, 206), "bfloat16", dtype="bfloat16"),
    _step(
        "tensorflow",
        "TF fused",
        0.95,
        (1, 206),
        "channels-last, C a multiple of 16",
        layout="last",
        channels=lambda c: c % 16 == 0,
        mean=1.05,
    ),
    _step(
        "tensorflow",
        "TF fused",
        1.8,
        (1, 206),
        "channels-last, C = 60",
        layout="last",
        channels=lambda c: c == 60,
    ),
    _step(
        "tensorflow",
        "TF fused",
        1.4,
        BIG,
        "channels-last, bfloat16",
        layout="last",
        dtype="bfloat16",
    ),
    _step("tensorflow", "TF fused", 4, BIG, "channels-first", layout="first", what="forward"),
    _mode("renorm, ghost, adjustment, two axes", ("renorm", "ghost", "adjustment", "axes"), 1.15),
    _mode("weights and masks", ("weights", "mask"), 1.4),
    _original("renorm", 4),
    _original("ghost", 8),
    Bar(
        "BN + ReLU, two steps over one",
        lambda row: row.question == "activation" and row.dtype == "float32" and _within(row, *BIG),
        1.4,
    ),
    _small("torch", 1.5),
    _small("jax", 1.2),
    _small("tensorflow", 1),
    _model("torch", 1.2),
    _model("tensorflow", 1.2),
    _model("jax", 1.0),
    Bar(
        "synchronized over one replica, over our plain",
        lambda row: row.question == "synchronized" and _within(row, 25, 26),
        1.1,
        at_most=True,
    ),
    _tf1("renorm, ghost batches and weights", ("renorm", "ghost", "weights"), 4),
    _tf1("plain", ("plain",), 1 / 1.1),
    *(
        _tool(name, framework, variant, limit)
        for name, limit in (("inspect", 3), ("reestimate", 1.3))
        for framework in ("torch", "jax", "tensorflow")
        for variant in ("ours", "keras", "modules")
        if variant != "modules" or framework == "torch"
    ),
)


def bar_of(row: Row) -> Bar | None:
    """The bar that is about a row; no row has two."""
    return next((bar for bar in BARS if bar.about(row)), None)


@dataclass(frozen=True)
class Verdict:
    """A bar beside the rows that it is about."""

    bar: Bar
    rows: tuple[Row, ...]

    @property
    def worst(self) -> float:
        ratios = [row.ratio for row in self.rows]
        return max(ratios) if self.bar.at_most else min(ratios)

    @property
    def geometric_mean(self) -> float:
        return exp(sum(log(row.ratio) for row in self.rows) / len(self.rows))

    @property
    def met(self) -> bool:
        enough = self.bar.mean is None or self.geometric_mean >= self.bar.mean
        return enough and all(self.bar.met(row) for row in self.rows)

    def __str__(self) -> str:
        kept = sum(self.bar.met(row) for row in self.rows)
        mean = "" if self.bar.mean is None else f" and {self.bar.mean:g} on the geometric mean"
        return (
            f"{self.bar.words} {self.bar}{mean}: {'met' if self.met else 'missed'}, "
            f"{kept} of {len(self.rows)} rows, worst {self.worst:.2f}, "
            f"geometric mean {self.geometric_mean:.2f}"
        )


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every bar that some row is about."""
    found = ((bar, tuple(row for row in rows if bar_of(row) is bar)) for bar in BARS)
    return [Verdict(bar, about) for bar, about in found if about]
