"""From measurements to words: what is wrong with a layer, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchnorm.tools.norm import Norm
from batchnorm.tools.profile import Profile

FEW = 16  # values per channel below which the batch's own statistics are mostly noise
SLOW = 0.05  # share of the initial statistics that may be left where they do not fit
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
    if reason := norm.frozen():
        yield (
            "frozen",
            f"{off} Training leaves them alone: {reason}.",
            "Let it learn: batchnorm.unfreeze(model), if it was not meant; or re-estimate them "
            "once: batchnorm.reestimate(model, training_data).",
        )
    elif profile.untouched():
        ran = profile.updates()
        so = "no update ever ran" if ran is None else f"{ran} updates changed nothing"
        yield (
            "never updated",
            f"{off} They are what they were at the start: {so}.",
            "Call the model with training=True in training, and keep the state that it returns (in "
            "JAX, the non-trainable variables); then train, or re-estimate: "
            "batchnorm.reestimate(model, training_data).",
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
        origin = (
            "No update was counted: a file, a re-estimate or an initializer made them,"
            if norm.updates() == 0
            else "They had enough updates: the model learned them"
        )
        yield (
            "other data",
            f"{off} {origin} from other data than this, or its weights were changed afterwards "
            "(averaged, pruned, quantized).",
            f"If this data is what the model is for: {_REESTIMATE}",
        )


def _slow(profile: Profile, off: str) -> Finding:
    updates = profile.updates()
    seen = "It has" if updates is None else f"After {updates} updates it has"
    needed = profile.needed()
    needs = f", which needs {needed} updates" if needed is not None else ""
    return (
        "too slow",
        f"{off} {seen} {100 * profile.left():.0f} % of its initial statistics left at momentum "
        f"{profile.norm.momentum:g}{needs}.",
        f"Lower the momentum (0.9), or train longer; now: {_REESTIMATE}",
    )


def _data(profile: Profile) -> Iterator[Finding]:
    """What the data does to the layer in training."""
    fewest = min(profile.values)
    if 0 < fewest < FEW and profile.norm.uses_batch() and not profile.norm.renorm():
        yield (
            "tiny groups",
            f"A channel has {fewest:g} values in a batch: what training normalizes with is mostly "
            "noise, and evaluation has none of it.",
            "Use larger batches, synchronized=True over replicas, or renorm=True with small ones.",
        )
    if count := int((profile.not_finite > 0).sum()):
        yield (
            "not finite",
            f"{count} of {len(profile.mean)} channels get NaN or infinite values from "
            f"{int(profile.not_finite.max())} batches.",
            "Clean the data, or look for what overflows before this layer.",
        )
    flat = profile.variance < 1e-6 * profile.norm.epsilon
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
            f"{skipped} updates were refused in training because the batch was not finite or "
            "empty.",
            "Look for the batches that did it.",
        )
    if getattr(profile.norm.layer, "statistics", "auto") == "batch":
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
