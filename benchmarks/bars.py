"""What the project promises, and whether a row keeps it: each promise is a line of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from benchmarks.rows import Row

FAST, BIG, SMALL = (1, 26), (25, 206), (1, 13)  # megabytes
ALL, MIDDLE, ONE = (1, 206), (25, 52), (25, 26)


@dataclass(frozen=True)
class Bar:
    """One promise: every row that it is about has a ratio of at most, or at least, `limit`.

    Attributes:
        where: Column of a row, and the value or the values that it may have.
        mean: What the geometric mean of all cases must reach besides.
    """

    words: str
    at_most: bool
    limit: float
    where: dict[str, Any]
    megabytes: tuple[float, float]
    mean: float | None = None

    def about(self, row: Row) -> bool:
        low, high = self.megabytes
        return low <= row.megabytes <= high and all(
            getattr(row, name) in (wanted if isinstance(wanted, tuple) else (wanted,))
            for name, wanted in self.where.items()
        )

    def met(self, row: Row) -> bool:
        return row.ratio <= self.limit if self.at_most else row.ratio >= self.limit

    def __str__(self) -> str:
        mean = "" if self.mean is None else f", mean >= {self.mean:g}"
        return f"{'<=' if self.at_most else '>='} {self.limit:.3g}{mean}"


def _at_most(limit: float, question: str, words: str, mb: tuple[float, float], **where: Any) -> Bar:
    return Bar(words, True, limit, {"question": question, **where}, mb)


def _at_least(
    limit: float, question: str, words: str, mb: tuple[float, float], **where: Any
) -> Bar:
    mean = where.pop("mean", None)
    return Bar(words, False, limit, {"question": question, **where}, mb, mean)


STEP = "forward + backward"
FLOATS: dict[str, Any] = {"dtype": "float32"}
KERNELS: dict[str, Any] = {"variant": "plain", "ours": "ours", **FLOATS}
# Page faults count: users meet them.
TORCH: dict[str, Any] = {"framework": "torch", "what": STEP, "memory": "default"}
JAX: dict[str, Any] = {"framework": "jax", "what": STEP, "memory": "default"}
FUSED: dict[str, Any] = {"framework": "tensorflow", "layout": "last", "what": STEP}
WHOLE = tuple(range(16, 2049, 16))  # channels that vectors divide

CALLS = {"torch": (2, 2, 2.2), "jax": (1.2, 1.2, 1.2), "tensorflow": (1, 1, 1)}

BARS = (
    _at_most(1.3, "kernels", "forward channels-first, over copy", BIG,
             what="forward", layout="first", **KERNELS),
    _at_most(1.65, "kernels", "forward channels-last, over copy", BIG,
             what="forward", layout="last", **KERNELS),
    _at_most(2.2, "kernels", "backward channels-first, over copy", BIG,
             what="backward", layout="first", **KERNELS),
    _at_most(2.8, "kernels", "backward channels-last, over copy", BIG,
             what="backward", layout="last", **KERNELS),
    _at_most(1.1, "kernels", "inference, over copy", BIG, what="inference", **KERNELS),
    _at_least(2.5, "frameworks", "torch eager over ours, channels-first", ALL,
              peer="torch eager", layout="first", **FLOATS, **TORCH),
    _at_least(1.4, "frameworks", "torch eager over ours, channels-last", ALL,
              peer="torch eager", layout="last", **FLOATS, **TORCH),
    _at_least(1.9, "frameworks", "torch eager over ours, bfloat16", ALL,
              peer="torch eager", dtype="bfloat16", **TORCH),
    _at_least(1.7, "frameworks", "torch.compile over ours, 1 to 25 MB", FAST,
              peer="torch.compile", **FLOATS, **TORCH),
    _at_least(2.5, "frameworks", "jitted JAX or flax over ours, to 13 MB", SMALL,
              **FLOATS, **JAX),
    _at_least(4, "frameworks", "jitted JAX or flax over ours, from 25 MB", BIG, **FLOATS, **JAX),
    _at_least(7, "frameworks", "jitted JAX or flax over ours, bfloat16", ALL,
              dtype="bfloat16", **JAX),
    _at_least(0.95, "frameworks", "TF fused over ours, channels-last, C a multiple of 16", ALL,
              channels=WHOLE, mean=1.05, **FLOATS, **FUSED),
    _at_least(1.8, "frameworks", "TF fused over ours, channels-last, C = 60", ALL,
              channels=60, **FLOATS, **FUSED),
    _at_least(1.4, "frameworks", "TF fused over ours, channels-last, bfloat16", BIG,
              dtype="bfloat16", **FUSED),
    _at_least(4, "frameworks", "TF fused over ours, channels-first, forward", BIG,
              framework="tensorflow", layout="first", what="forward", **FLOATS),
    _at_most(1.15, "modes", "renorm, ghost, adjustment, two axes, over our plain", ONE,
             variant=("renorm", "ghost", "adjustment", "axes"), peer="ours, plain", **FLOATS),
    _at_most(1.4, "modes", "weights and masks, over our plain", ONE,
             variant=("weights", "mask"), peer="ours, plain", **FLOATS),
    _at_least(4, "modes", "renorm, tf_keras over ours", MIDDLE, variant="renorm", peer="tf_keras"),
    _at_least(8, "modes", "ghost, tf_keras over ours", MIDDLE, variant="ghost", peer="tf_keras"),
    _at_least(1.4, "activation", "BN + ReLU, two steps over one", BIG, **FLOATS),
    *(
        _at_most(limit, "small", f"small tensors, {what}, over {framework}'s own", (0, 0.01),
                 framework=framework, what=what, ours="ours")
        for framework, limits in CALLS.items()
        for what, limit in zip(("forward", "inference", "step"), limits, strict=True)
    ),
    *(
        _at_most(limit, "modules", f"small tensors, {what}, over torch.nn", (0, 0.01), what=what)
        for what, limit in (("forward", 1.6), ("inference", 1.6), ("step", 1.8))
    ),
    _at_least(1.6, "modules", "BN + add + ReLU, torch's three steps over our one", BIG,
              variant="block", **FLOATS),
    _at_least(2, "flax", "a step of one module, flax over ours, from 6 MB", (6, 206)),
    _at_least(0.85, "flax", "a step of one module, flax over ours, small tensors", (0, 0.01),
              variant=("nnx", "linen")),
    _at_least(1, "flax", "a step of four layers, flax over ours, small tensors", (0, 0.01),
              variant="linen, 4 layers"),
    *(
        _at_least(limit, "models", f"a step of a small ResNet on {framework}", (1, 2),
                  framework=framework, ours="ours")
        for framework, limit in (("torch", 1.2), ("tensorflow", 1.2), ("jax", 1.0))
    ),
    _at_most(1.1, "synchronized", "synchronized over one replica, over our plain", ONE),
    _at_least(4, "tf1", "TensorFlow 1 functions, renorm, ghost batches and weights", ONE,
              variant=("renorm", "ghost", "weights")),
    _at_least(1 / 1.1, "tf1", "TensorFlow 1 functions, plain", ONE, variant="plain"),
    _at_most(3, "tools", "inspect, over a forward pass", (0.3, 0.5), what="inspect"),
    _at_most(1.3, "tools", "reestimate, over a forward pass", (0.3, 0.5), what="reestimate"),
)  # fmt: skip


def bar_of(row: Row) -> Bar | None:
    """The bar that is about a row; no row has two."""
    return next((bar for bar in BARS if bar.about(row)), None)


@dataclass(frozen=True)
class Verdict:
    """A bar beside the rows that it is about: of each case the one with the fastest peer."""

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
        return f"{self.bar.words} {self.bar}: {self.short}"

    @property
    def short(self) -> str:
        """The verdict without the promise."""
        kept = sum(self.bar.met(row) for row in self.rows)
        return (
            f"{'met' if self.met else 'missed'}, {kept} of {len(self.rows)}, worst "
            f"{self.worst:.2f}, mean {self.geometric_mean:.2f}"
        )


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every bar that some row of one processor is about."""
    found = ((bar, fastest(row for row in rows if bar_of(row) is bar)) for bar in BARS)
    return [Verdict(bar, about) for bar, about in found if about]


def fastest(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Of the rows that differ in the peer alone, the one whose peer took the shortest."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        case = (row.framework, row.what, row.variant, row.size, row.layout, row.dtype, row.memory)
        if case not in best or row.peer_min_ms < best[case].peer_min_ms:
            best[case] = row
    return tuple(best.values())
