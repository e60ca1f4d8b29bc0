"""What the demo trains: kinds of normalization times regimes of batches."""

from dataclasses import dataclass, replace

# Kind, and what the table calls it.
KINDS = {"none": "none", "batch": "batch norm", "renorm": "renorm", "ghost": "ghost"}


@dataclass(frozen=True)
class Regime:
    """How batches are drawn, and how long and how fast the network learns from them.

    Attributes:
        name: What the table calls it.
        batch: Images a step.
        classes: Classes in each batch; None draws from all images alike.
        ghost: Images a ghost batch, a divisor of `batch`.
        steps: Steps of each run.
        every: Steps between two evaluations, a divisor of `steps`.
        learning_rate: At the start, for SGD with momentum 0.9; the same for every kind.
        momentum: Share of the old moving statistics kept at each step.
        accumulate: Steps whose mean gradient moves the weights once, a divisor of `steps`.
        kinds: What is trained.
    """

    name: str
    batch: int
    classes: int | None
    ghost: int
    steps: int
    every: int
    learning_rate: float
    momentum: float
    accumulate: int = 1
    kinds: tuple[str, ...] = tuple(KINDS)


# Learning rates are high, for the network without normalization learns poorly with lower ones,
# but not so high that renorm, here as in Keras' own layer, starts to fail (0.3 at batches of 64).
# Moving averages must settle within a run: momentum 0.9 where one batch says enough, 0.99 where
# it is a poor sample. Where a batch holds one class, the mean gradient of ten batches moves the
# weights: what fails then is the normalization, not learning from one class at a time.
REGIMES = (
    Regime("batches of 64", 64, None, 16, 300, 10, 0.2, 0.9),
    Regime("batches of 4", 4, None, 2, 1500, 50, 0.02, 0.99),
    Regime("two classes a batch", 64, 2, 16, 600, 20, 0.02, 0.99),
    Regime(
        "one class a batch", 16, 1, 4, 1200, 50, 0.4, 0.9, accumulate=10, kinds=("batch", "renorm")
    ),
    Regime("batches of 512", 512, None, 32, 80, 5, 0.1, 0.9),
)


@dataclass(frozen=True)
class Plan:
    """The rows of the table, `(regime, kind)`, and the network's width for each layer."""

    rows: tuple[tuple[Regime, str], ...]
    widths: tuple[int, ...]


def full() -> Plan:
    """Every kind of every regime."""
    rows = tuple((regime, kind) for regime in REGIMES for kind in regime.kinds)
    return Plan(rows, widths=(16, 32, 32))


def quick(compared: dict[str, tuple[str, ...]]) -> Plan:
    """Three evaluations of the kinds that claims compare, by regime, on a tiny network."""
    rows = tuple(
        (replace(regime, steps=3 * regime.every), kind)
        for regime in REGIMES
        for kind in compared.get(regime.name, ())
    )
    return Plan(rows, widths=(4,))
