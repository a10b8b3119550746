"""The self-contained HTML report about a task."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from plug_jax.atomic_files import write_whole
from plug_jax.objectives.shares import CONFIDENCE, Share
from plug_jax.task_reports.decoded_examples import DecodedExample
from plug_jax.task_reports.statistics import Lengths, Subject, TaskStatistics

# Colours of the figures, replaced by those that the page's style sheet defines for light and dark
# mode.
_COLORS = {
    "#010001": "currentColor",
    "#010002": "var(--bar)",
    "#010003": "var(--asked)",
    "#010004": "var(--band)",
}
_TEXT, _BAR, _ASKED, _BAND = _COLORS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT),
}
_MOST_BARS = 40


def write_report(
    path: Path, subject: Subject, statistics: TaskStatistics, examples: Sequence[DecodedExample]
) -> None:
    """Writes the page, in UTF-8; it needs no other file, no script and no network."""
    write_whole(path, render_report(subject, statistics, examples))


def render_report(
    subject: Subject, statistics: TaskStatistics, examples: Sequence[DecodedExample]
) -> str:
    """The page as text; everything from the task or its text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plug_jax.task_reports", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        subject=subject,
        statistics=statistics,
        examples=examples,
        figures=[(lengths, length_figure(lengths)) for lengths in statistics.lengths],
        interval=interval,
        confidence=CONFIDENCE,
    )


def interval(share: Share) -> dict[str, float] | None:
    """Positions of low, value, high and target on a line of 120 units, the target in the middle.

    None if a plot would be useless: without a target, or if any deviation is an error.
    """
    if not share.target or not share.total:
        return None
    low, high = share.bounds
    places = {"low": low, "value": share.value, "high": high, "target": share.target}
    reach = 1.15 * max(abs(place - share.target) for place in places.values())
    return {name: 60 * (1 + (at - share.target) / reach) for name, at in places.items()}


def length_figure(lengths: Lengths) -> markupsafe.Markup:
    """A histogram, with the uniform distribution and its 95% band, or the maximum, if requested."""
    edges = _edges(lengths)
    counts = np.histogram(np.arange(len(lengths.counts)), edges, weights=lengths.counts)[0]
    widths = np.diff(edges)
    title = f"Histogram of the {lengths.name} lengths"
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")  # pyplot would need a display
        axes = figure.subplots()
        axes.stairs(counts / widths, edges - 0.5, fill=True, color=_BAR)
        if lengths.mean_asked is not None:
            _draw_uniform_law(axes, lengths, edges)
        elif lengths.longest_asked is not None:
            axes.axvline(lengths.longest_asked, color=_ASKED, linestyle="--", linewidth=1.4)
        axes.set(xlabel="tokens", ylabel="examples", ylim=(0, None))
        return _inline_svg(figure, title)


def _draw_uniform_law(axes: matplotlib.axes.Axes, lengths: Lengths, edges: np.ndarray) -> None:
    """Expected numbers of examples of each length, and the range of 95% of the bars."""
    low, high = lengths.shortest_asked, lengths.longest_asked
    assert low is not None and high is not None
    edges = edges[(edges >= low) & (edges <= high + 1)]
    widths = np.diff(edges)
    share = widths / (high - low + 1)
    asked = lengths.total / (high - low + 1)
    spread = 1.96 * np.sqrt(lengths.total * share * (1 - share)) / widths
    least = np.maximum(asked - spread, 0)
    axes.stairs(asked + spread, edges - 0.5, baseline=least, fill=True, color=_BAND)
    axes.hlines(asked, low - 0.5, high + 0.5, color=_ASKED, linestyle="--", linewidth=1.4)


def _edges(lengths: Lengths) -> np.ndarray:
    """Integer edges of the bars, aligned to the requested range, and beyond it if needed."""
    shortest, longest = lengths.extremes
    low, high = lengths.shortest_asked, lengths.longest_asked
    first = shortest if low is None else low
    beyond = (longest if high is None else max(first, high)) + 1
    width = math.ceil((max(beyond, longest + 1) - min(first, shortest)) / _MOST_BARS)
    below = range(first, shortest - width, -width)
    above = range(beyond, longest + 1 + width, width)
    return np.array(sorted({*below, *range(first, beyond, width), beyond, *above}))


def _inline_svg(figure: Figure, title: str) -> markupsafe.Markup:
    """A figure as an element of a page: in its colours and fonts, with unique ids."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    _, view_box, svg = re.split(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', file.getvalue(), maxsplit=1)
    prefix = re.sub(r"\W+", "-", title)
    replacements = {
        r"<style.*?</style>": "",
        r"font[a-z-]*: [^;\"]*;?": "",
        r'(\bid="|"#|url\(#)': rf"\g<1>{prefix}-",
        **_COLORS,
    }
    for pattern, replacement in replacements.items():
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    label = markupsafe.escape(title)
    return markupsafe.Markup(f'<svg role="img" aria-label="{label}" {view_box}>{svg}')
