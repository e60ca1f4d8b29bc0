"""The plots of a report, with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from batchnorm.tools.diagnosis import Diagnosis
from batchnorm.tools.profile import Profile
from batchnorm.tools.rows import Row

INK, GOOD, WARN, BAD = "#3b4a5e", "#3273a8", "#d9901a", "#c62f2f"
COLORS = {"error": BAD, "warning": WARN, "note": GOOD, "": GOOD}
MANY = 40  # layers, beyond which only some are named


def drift_plot(rows: Sequence[Row], diagnoses: Sequence[Diagnosis]) -> Any:
    """Drift of each layer's output, in the order of the model."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    drifts = np.array([row.drift for row in rows])
    names = [row.layer for row in rows]
    finite = drifts[np.isfinite(drifts)]
    top = max(float(finite.max(initial=0)) * 1.15, 0.1)
    places = np.arange(len(drifts))
    axes.bar(
        places,
        np.where(np.isfinite(drifts), drifts, top),
        color=_colors(names, diagnoses),
        width=0.75,
    )
    for place in places[~np.isfinite(drifts)]:
        axes.text(place, top, "not finite", ha="center", va="bottom", fontsize=8, color=BAD)
    axes.set_ylim(0, top * 1.12)
    axes.set_ylabel("drift, standard deviations")
    axes.set_title("Outputs in training against outputs in evaluation", loc="left", fontsize=10)
    _name_layers(axes, names)
    return figure


def profile_plot(profiles: Sequence[Profile], diagnoses: Sequence[Diagnosis]) -> Any:
    """Median and the middle 90 % of channels: distance of means, log ratio of variances."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(profiles))
    names = [profile.norm.name for profile in profiles]
    colors = _colors(names, diagnoses)
    measures: tuple[tuple[str, Callable[[Profile], Any], float], ...] = (
        ("mean of the data - moving mean,\nstandard deviations", _signed_distance, 0.5),
        ("log(variance of the data /\nmoving variance)", Profile.log_ratio, np.log(2)),
    )
    for axes, (words, measure, limit) in zip(panels, measures, strict=True):
        low, middle, high = np.transpose([_quantiles(measure(one)) for one in profiles])
        axes.axhspan(-limit, limit, color="#2c8a4b", alpha=0.08, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.vlines(places, low, high, color=colors, linewidth=5, alpha=0.45)
        axes.scatter(places, middle, color=colors, s=24, zorder=3)
        axes.set_ylabel(words, fontsize=9)
    panels[0].set_title(
        "Dot: median channel; bar: the middle 90 %; green: as far as is harmless",
        loc="left",
        fontsize=10,
    )
    _name_layers(panels[1], names)
    return figure


def histograms(profiles: Sequence[Profile], each: int = 2) -> Any:
    """What the worst channels of some layers saw, and the normal curves of both statistics."""
    figure = Figure(figsize=(10, 0.7 + 2.4 * max(len(profiles), 1)), layout="constrained")
    panels = figure.subplots(max(len(profiles), 1), each, squeeze=False)
    for line, profile in zip(panels, profiles, strict=False):
        channels = profile.worst()
        for axes, channel in zip(line, [*channels, *channels][:each], strict=True):
            _histogram(axes, profile, channel)
    # once for all: each panel has the same marks, or fewer where a statistic is not finite
    marks: dict[str, Any] = {}
    for axes in panels.flat:
        for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(label, mark)
    if marks:
        figure.legend(
            list(marks.values()),
            list(marks),
            loc="outside upper center",
            ncols=len(marks),
            fontsize=9,
            frameon=False,
        )
    return figure


def _histogram(axes: Any, profile: Profile, channel: int) -> None:
    values = profile.sample[:, channel]
    values = values[np.isfinite(values)]
    axes.set_title(f"{profile.norm.name}, channel {channel}", loc="left", fontsize=9)
    axes.set_yticks([])
    axes.set_xlabel("input of the layer", fontsize=8)
    axes.set_ylabel("density", fontsize=8)
    if len(values):
        axes.hist(values, bins=30, density=True, color="#c9d3df", label="values")
    pairs = (
        ("statistics of the data", profile.mean[channel], profile.variance[channel], GOOD),
        ("moving", profile.moving_mean[channel], profile.moving_variance[channel], BAD),
    )
    for label, mean, variance, color in pairs:
        if not (np.isfinite(mean) and np.isfinite(variance) and variance >= 0):
            words = f"{label} mean {mean:.3g}, variance {variance:.3g}"
            axes.text(
                0.98, 0.85, words, transform=axes.transAxes, ha="right", color=BAD, fontsize=8
            )
            continue
        deviation = float(np.sqrt(variance + 1e-12))
        x = np.linspace(mean - 4 * deviation, mean + 4 * deviation, 200)
        y = np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        axes.plot(x, y, color=color, linewidth=1.6, label=label)


def _signed_distance(profile: Profile) -> Any:
    with np.errstate(all="ignore"):
        sign = np.sign(profile.mean - profile.moving_mean)
    return sign * profile.distance()


def _quantiles(values: Any) -> Any:
    finite = values[np.isfinite(values)]
    return np.quantile(finite, [0.05, 0.5, 0.95]) if len(finite) else np.full(3, np.nan)


def _colors(names: Sequence[str], diagnoses: Sequence[Diagnosis]) -> list[str]:
    worst = {one.layer: one.severity for one in reversed(diagnoses)}
    return [COLORS[worst.get(name, "")] for name in names]


def _name_layers(axes: Any, every: Sequence[str]) -> None:
    step = -(-len(every) // MANY)
    places = np.arange(0, len(every), step)
    names = list(every[::step])
    crowded = len(names) > 8
    axes.set_xticks(
        places,
        names,
        rotation=60 if crowded else 0,
        fontsize=7 if crowded else 9,
        ha="right" if crowded else "center",
        rotation_mode="anchor",
    )
    axes.set_xlim(-0.6, len(every) - 0.4)
    axes.set_xlabel("layer, in the order of the model", fontsize=9)
