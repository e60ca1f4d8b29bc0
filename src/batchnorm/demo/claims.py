"""Published claims, judged from the runs of the demo."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from batchnorm.demo.plan import KINDS
from batchnorm.demo.training import Run


class Verdict(StrEnum):
    """What the runs say about a claim."""

    SEEN = "seen here"
    OPPOSITE = "the opposite was seen here"
    UNCLEAR = "not seen here"
    UNTOLD = "cannot be told"


@dataclass(frozen=True)
class Claim:
    """In `regime`, `better` beats `worse` by `measure`.

    Attributes:
        text: The claim in words.
        source: Who published it.
        regime: Name of the regime.
        better: Kind that the claim favors.
        worse: Kind that it is compared with.
        measure: "steps" to the target, fewer is better; "accuracy" at the end; or "lost": how much
            less that is than the accuracy on training batches, less is better.
    """

    text: str
    source: str
    regime: str
    better: str
    worse: str
    measure: str


CLAIMS = (
    Claim(
        "Batch normalization needs fewer steps than no normalization",
        "Ioffe and Szegedy 2015",
        "batches of 64",
        "batch",
        "none",
        "steps",
    ),
    Claim(
        "Renormalization beats batch normalization at tiny batches",
        "Ioffe 2017",
        "batches of 4",
        "renorm",
        "batch",
        "accuracy",
    ),
    Claim(
        "Renormalization beats batch normalization where batches are not i.i.d.",
        "Ioffe 2017",
        "two classes a batch",
        "renorm",
        "batch",
        "accuracy",
    ),
    Claim(
        "Renormalization evaluates as it trained where a batch holds one class, and batch "
        "normalization fails",
        "Ioffe 2017, section 4.3",
        "one class a batch",
        "renorm",
        "batch",
        "lost",
    ),
    Claim(
        "Renormalization beats batch normalization where a batch holds one class",
        "Ioffe 2017, section 4.3",
        "one class a batch",
        "renorm",
        "batch",
        "accuracy",
    ),
    Claim(
        "Ghost batches beat whole batches where batches are large",
        "Hoffer, Hubara and Soudry 2017",
        "batches of 512",
        "ghost",
        "batch",
        "accuracy",
    ),
)


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdict, and the numbers behind it in words."""

    claim: Claim
    verdict: Verdict
    numbers: str

    def __str__(self) -> str:
        return f"{self.claim.text} ({self.claim.source}): {self.verdict}. {self.numbers}"


def compared() -> dict[str, tuple[str, ...]]:
    """Kinds that the claims compare, by name of regime."""
    return {claim.regime: (claim.worse, claim.better) for claim in CLAIMS}


def judge(claim: Claim, runs: Sequence[Run]) -> Judgement:
    """Verdict from the differences between runs of the same seed.

    A claim is seen when the 95 % interval of the mean difference (Student's t over seeds) lies
    on its side of zero, its opposite when the interval lies on the other side.
    """
    measure = {"steps": _steps, "accuracy": _accuracy, "lost": _lost}[claim.measure]
    better = _by_seed(runs, claim.regime, claim.better, measure)
    worse = _by_seed(runs, claim.regime, claim.worse, measure)
    seeds = sorted(better.keys() & worse.keys())
    gains = np.array([better[seed] - worse[seed] for seed in seeds])
    if claim.measure != "accuracy":
        gains = -gains
    if len(gains) < 2:
        return Judgement(claim, Verdict.UNTOLD, "A difference needs at least two seeds.")
    middle, half = interval(gains)
    if middle - half > 0:
        verdict = Verdict.SEEN
    elif middle + half < 0:
        verdict = Verdict.OPPOSITE
    else:
        verdict = Verdict.UNCLEAR
    words = _words(claim, middle, half, len(gains), _censored(claim, runs))
    if claim.measure == "lost":
        kinds = claim.worse, claim.better
        means = [np.mean([one[seed] for seed in seeds]) for one in (worse, better)]
        lost = (f"{KINDS[kind]} {mean:.1f}" for kind, mean in zip(kinds, means, strict=True))
        words += f" Lost on average: {', '.join(lost)}."
    return Judgement(claim, verdict, words)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean of at least two values, and half the width of its 95 % interval."""
    count = len(values)
    error = values.std(ddof=1) / np.sqrt(count)
    return float(values.mean()), float(stats.t.ppf(0.975, count - 1) * error)


def _by_seed(
    runs: Sequence[Run], regime: str, kind: str, measure: Callable[[Run], float]
) -> dict[int, float]:
    return {
        run.seed: measure(run) for run in runs if run.regime.name == regime and run.kind == kind
    }


def _accuracy(run: Run) -> float:
    return 100 * run.accuracy


def _lost(run: Run) -> float:
    return 100 * (run.fitted - run.accuracy)


def _steps(run: Run) -> float:
    """Steps to the target; a run that never reached it counts with all of its steps."""
    reached = run.steps_to_target
    return run.regime.steps if reached is None else reached


def _censored(claim: Claim, runs: Sequence[Run]) -> int:
    if claim.measure != "steps":
        return 0
    kinds = (claim.better, claim.worse)
    return sum(
        run.steps_to_target is None
        for run in runs
        if run.regime.name == claim.regime and run.kind in kinds
    )


def _words(claim: Claim, middle: float, half: float, seeds: int, censored: int) -> str:
    if claim.measure == "steps":
        direction = "fewer" if middle >= 0 else "more"
        words = f"{abs(middle):.0f} ± {half:.0f} steps {direction} to 95 %"
    elif claim.measure == "lost":
        direction = "less" if middle >= 0 else "more"
        words = f"{abs(middle):.1f} ± {half:.1f} points {direction} lost from training to test"
    else:
        direction = "more" if middle >= 0 else "less"
        words = f"{abs(middle):.1f} ± {half:.1f} points {direction} test accuracy"
    words += f" at {claim.regime}, over {seeds} seeds"
    if censored:
        run = (
            "run never got there and counts" if censored == 1 else "runs never got there and count"
        )
        words += f"; {censored} {run} with the last step"
    return words + "."
