"""From measurements to words: what is wrong with a layer, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchnorm.tools.norm import Norm
from batchnorm.tools.profile import FLAT, LEFT, SLOW, Profile

FEW = 16  # values per channel below which the batch's own statistics are mostly noise
SEVERITIES = ("error", "warning", "note")

# Every cause, with its severity: what the report can say.
CAUSES = {
    "poisoned": "error",
    "frozen": "error",
    "never updated": "error",
    "too slow": "error",
    "unlike batches": "error",
    "other data": "error",
    "tiny groups": "warning",
    "not finite": "warning",
    "constant": "warning",
    "never called": "note",
    "dead": "note",
    "saturated": "note",
    "collapsed": "note",
    "skipped": "note",
    "batch at evaluation": "note",
    "lost by conversion": "note",
}


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with one layer.

    Attributes:
        cause: a key of `CAUSES`.
        severity: "error", "warning" or "note"; notes are no alarm.
        words: what was seen, in a sentence.
        remedy: what to do, in a sentence.
    """

    layer: str
    cause: str
    severity: str
    words: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.cause} ({self.severity}). {self.words} {self.remedy}"


def diagnose(profiles: Sequence[Profile], missed: Sequence[Norm]) -> list[Diagnosis]:
    """Every diagnosis, the gravest first, then in the order in which the model calls its layers."""
    found = [
        Diagnosis(profile.norm.name, cause, CAUSES[cause], words, remedy)
        for profile in profiles
        for cause, words, remedy in (*_statistics(profile), *_data(profile), *_notes(profile))
    ]
    found += [
        Diagnosis(
            norm.name,
            "never called",
            CAUSES["never called"],
            "The model never called it on this data.",
            "Look whether it is meant to be used.",
        )
        for norm in missed
    ]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


Finding = tuple[str, str, str]
_REESTIMATE = "re-estimate them: batchnorm.reestimate(model, training_data)."


def _statistics(profile: Profile) -> Iterator[Finding]:
    """Why the moving statistics do not serve: the first cause that holds."""
    norm = profile.norm
    if count := int(profile.poisoned.sum()):
        yield (
            "poisoned",
            f"The moving statistics of {count} of {len(profile.mean)} channels are NaN, infinite "
            "or negative.",
            "Repair it: batchnorm.repair(model, training_data); then find the batch that did it.",
        )
        return
    if profile.misfit() <= 1 and not (profile.unlike() and profile.learned_from_batches()):
        return
    off = (
        f"The moving mean is {_rms_words(profile)} from the data's, the variance off by a factor "
        f"of {_factor(profile):.3g}."
    )
    if held := norm.frozen():
        yield (
            "frozen",
            f"{off} Training leaves them alone: {held.reason}.",
            f"Let it learn, if it was not meant: {held.remedy}; or re-estimate them once: "
            "batchnorm.reestimate(model, training_data).",
        )
    elif norm.untouched():
        ran = norm.updates()
        so = f"{_updates(ran)} changed nothing" if ran else "no update ever ran"
        yield (
            "never updated",
            f"{off} They are what they were at the start: {so}.",
            f"{norm.how_to_update()}; then train, or {_REESTIMATE}",
        )
    elif profile.left() > SLOW:
        yield _slow(profile, off)
    elif profile.unlike() and profile.learned_from_batches():
        yield (
            "unlike batches",
            f"{100 * profile.between():.0f} % of the variance lies between the batches' means: the "
            "rows of a batch are more alike than rows at random, and the moving variance knows "
            "only what varies within a batch.",
            "Shuffle, so that each batch looks like all the data; or re-estimate over all of it: "
            "batchnorm.reestimate(model, training_data).",
        )
    elif profile.misfit() > 1:
        counted = norm.updates()
        if counted is None or profile.updates() is not None:
            origin = "They had enough updates: the model learned them"
        else:
            no = "No update was counted" if not counted else "The counter does not speak of them"
            origin = f"{no}: a file, a re-estimate or an initializer made them,"
        yield (
            "other data",
            f"{off} {origin} from other data than this, or its weights were changed afterwards "
            "(averaged, pruned, quantized).",
            f"If this data is what the model is for: {_REESTIMATE}",
        )


def _slow(profile: Profile, off: str) -> Finding:
    norm, updates, needed = profile.norm, profile.updates(), profile.needed()
    seen = "It has" if updates is None else f"After {_updates(updates)} it has"
    needs = f", which needs {_updates(needed)}" if needed is not None else ""
    longer = "Train longer" if needed is None else f"Train for {_updates(needed)} at least"
    # what would have been enough for the updates that it had
    enough = LEFT ** (1 / updates) if updates else 0.9
    sooner = "" if (norm.momentum or 0) <= enough else f", or {norm.quicker(_below(enough))}"
    return (
        "too slow",
        f"{off} {seen} {100 * profile.left():.0f} % of its initial statistics left at momentum "
        f"{norm.said_momentum(norm.momentum)}{needs}.",
        f"{longer}{sooner}; now: {_REESTIMATE}",
    )


def _below(momentum: float) -> float:
    """The momentum with two digits, rounded down."""
    return math.floor(100 * momentum) / 100


def _updates(count: int) -> str:
    return f"{count} update{'' if count == 1 else 's'}"


def _data(profile: Profile) -> Iterator[Finding]:
    """What the data does to the layer in training."""
    fewest = min(profile.values)
    if 0 < fewest < FEW and profile.norm.decides(True)[0] and not profile.norm.renorm():
        yield (
            "tiny groups",
            f"A channel has {fewest:g} values in a batch: what training normalizes with is mostly "
            "noise, and evaluation has none of it.",
            profile.norm.how_to_bear_small_batches(),
        )
    if count := int((profile.not_finite > 0).sum()):
        yield (
            "not finite",
            f"{count} of {len(profile.mean)} channels get NaN or infinite values from "
            f"{int(profile.not_finite.max())} batches.",
            "Clean the data, or look for what overflows before this layer.",
        )
    flat = profile.variance < FLAT * profile.norm.epsilon
    if 2 * int(flat.sum()) > len(flat):
        yield (
            "constant",
            f"{int(flat.sum())} of {len(flat)} channels get the same value everywhere.",
            "Look for what went dead before this layer.",
        )


def _notes(profile: Profile) -> Iterator[Finding]:
    """What is worth knowing and no alarm."""
    channels = len(profile.mean)
    for cause, which, words in (
        ("dead", profile.dead(), "put out a constant: gamma or the input's variance is nothing."),
        ("saturated", profile.saturated(), "stay on one side of 0: beta is beyond 4 gamma."),
        ("collapsed", profile.collapsed(), "have a moving variance far below epsilon."),
    ):
        if count := int(which.sum()):
            yield (
                cause,
                f"{count} of {channels} channels {words}",
                "They can be pruned, or need a look.",
            )
    if skipped := profile.norm.skipped():
        yield (
            "skipped",
            f"Training refused {_updates(skipped)} because the batch was not finite or empty.",
            "Look for the batches that did it.",
        )
    if lost := profile.norm.lost_by_conversion():
        yield ("lost by conversion", f"{lost}.", "Keep that in mind before you convert the model.")
    if profile.norm.decides(False)[0]:
        yield (
            "batch at evaluation",
            "It normalizes with the batch in evaluation too (statistics='batch').",
            "Set statistics='auto' if that is not meant.",
        )


def _rms_words(profile: Profile) -> str:
    distance = float((profile.distance()[profile.seen()] ** 2).mean() ** 0.5)
    return f"{distance:.2g} standard deviations"


def _factor(profile: Profile) -> float:
    ratio = float((profile.log_ratio()[profile.seen()] ** 2).mean() ** 0.5)
    return float(2.718281828459045 ** min(ratio, 700.0))
