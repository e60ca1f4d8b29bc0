"""The report of `inspect` as one HTML file: words, table and plots, nothing from outside."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from batchnorm.tools.diagnosis import Diagnosis
from batchnorm.tools.profile import Profile
from batchnorm.tools.rows import Row, cells

HISTOGRAMS = 4  # layers whose worst channels are shown

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --dim: #667080; --line: #dde2e9; --back: #f7f8fa; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 10px; }
p.dim, figcaption { color: var(--dim); margin: 0 0 12px; }
.card { background: white; border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  margin: 0 0 10px; border-left: 5px solid #8a94a3; }
.card.error { border-left-color: #c62f2f; } .card.warning { border-left-color: #d9901a; }
.card.fine { border-left-color: #2c8a4b; }
.card b { font-size: 16px; } .card p { margin: 4px 0 0; }
.scroll { overflow-x: auto; background: white; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
td.error { color: #c62f2f; font-weight: 600; } td.warning { color: #a8690a; font-weight: 600; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Batch normalization: {verdict}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>Batch normalization: {verdict}</h1>
<p class="dim">{layers} layers, {batches} batches, in training and in evaluation.</p>
{cards}
<h2>Layer by layer</h2>
{drift}
<h2>Channels against the data</h2>
{profile}
<h2>Worst channels</h2>
{histograms}
<h2>Numbers</h2>
<div class="scroll"><table id="rows"><thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
<p class="dim">Distances are root mean squares over a layer's channels, in standard deviations of
the data. Drift is the distance between a layer's outputs in training and in evaluation.</p>
</main>
</body>
</html>
"""

_HEAD = (
    "layer",
    "channels",
    "values",
    "mean off",
    "log var off",
    "updates",
    "drift",
    "path",
    "verdict",
)


def page(
    rows: Sequence[Row],
    diagnoses: Sequence[Diagnosis],
    profiles: Sequence[Profile],
    batches: int,
) -> str:
    """The report as the text of an HTML file that needs no network.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(
            "inspect: matplotlib must be installed for a page with plots; got none. Run: pip "
            "install 'batchnorm[demo]', or save the numbers as .json."
        )
    from batchnorm.tools.plots import drift_plot, histograms, profile_plot

    found = sum(one.severity != "note" for one in diagnoses)
    verdict = "no alarm" if not found else f"{found} alarm{'s' if found > 1 else ''}"
    worst = sorted(
        (profile for profile in profiles if len(profile.sample)),
        key=lambda profile: -(np.inf if profile.poisoned.any() else profile.misfit()),
    )
    drift, spread = drift_plot(rows, diagnoses), profile_plot(profiles, diagnoses)
    return _TEMPLATE.format(
        style=_STYLE,
        verdict=verdict,
        layers=len(rows),
        batches=batches,
        cards=_cards(diagnoses),
        drift=_figure(drift, "How far outputs in training and evaluation drift apart"),
        profile=_figure(spread, "Spread over channels, layer by layer"),
        histograms=_figure(histograms(worst[:HISTOGRAMS]), "What the worst channels saw"),
        head="".join(f"<th>{name}</th>" for name in _HEAD),
        rows="\n".join(_line(row, diagnoses) for row in rows),
    )


def _cards(diagnoses: Sequence[Diagnosis]) -> str:
    if not diagnoses:
        return '<div class="card fine"><b>No alarm</b><p>The statistics fit the data.</p></div>'
    return "\n".join(
        f'<div class="card {one.severity}"><b>{escape(one.layer)}: {escape(one.cause)}</b>'
        f"<p>{escape(one.words)}</p><p>{escape(one.remedy)}</p></div>"
        for one in diagnoses
    )


def _line(row: Row, diagnoses: Sequence[Diagnosis]) -> str:
    found = [one for one in diagnoses if one.layer == row.layer]
    severity = found[0].severity if found else ""
    words = ", ".join(dict.fromkeys(one.cause for one in found)) or "fits"
    middle = (*cells(row), row.path)
    return (
        f"<tr><td>{escape(row.layer)}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in middle)
        + f'<td class="{severity}">{escape(words)}</td></tr>'
    )


def _figure(figure: Any, words: str) -> str:
    """A plot inside the page itself."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}"></figure>'
