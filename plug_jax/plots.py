"""Plots of runs: learning curves and confusion matrices."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.atomic_files import write_whole

Records = Sequence[Mapping[str, Any]]


def plot_curves(
    groups: Mapping[str, Sequence[Records]],
    metric: str,
    path: Path,
    *,
    lines: Mapping[str, float] | None = None,
) -> None:
    """A held-out metric by step: the mean over a group's runs, and their range as a band.

    Only steps at which all runs of a group were evaluated are drawn.

    Args:
        groups: by group name, the metrics.jsonl records of each run.
        metric: its name in the records.
        path: the PNG to write.
        lines: values to compare with, by name.
    """
    figure, (axis,) = new_figure(1, width=7.0)
    for number, (name, runs) in enumerate(groups.items()):
        curves = [
            dict(zip(*series(records, "validation", metric), strict=True)) for records in runs
        ]
        curves = [curve for curve in curves if curve]  # of evaluated runs
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        values = np.array([[curve[step] for step in steps] for curve in curves])
        if not steps:
            continue
        color = f"C{number % 10}"
        marker = "o" if len(steps) < 30 else ""
        axis.plot(steps, values.mean(axis=0), marker=marker, markersize=3, color=color, label=name)
        if len(curves) > 1:
            axis.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0
            )
    for number, (name, value) in enumerate((lines or {}).items()):
        grey, style = str(0.3 + 0.2 * (number % 4)), ("--", ":", "-.")[number // 4 % 3]
        axis.axhline(value, color=grey, linestyle=style, linewidth=1, label=name)
    axis.set(xlabel="step", ylabel=f"{metric} on dev; bands: all seeds")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_whole(path, png.getvalue())


_NAMED_LABELS = 20  # with more labels, names and numbers are omitted


def confusion_figure(counts: np.ndarray, labels: Sequence[str]) -> Any:
    """A coloured confusion matrix: gold labels as rows, predictions as columns.

    Args:
        counts: int [C, C].
        labels: C names, replaced by numbers if no installed font can draw them.
    """
    labels = _drawable(labels)
    named = len(labels) <= _NAMED_LABELS
    size = max(3.2, 0.55 * len(labels) + 1.6) if named else 7.0
    figure, (axis,) = new_figure(1, width=size + 0.6, height=size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.8, label="share of the gold label")
    axis.set(xlabel="predicted", ylabel="gold")
    if named:
        rotation = 90 if max(map(len, labels)) > 4 else 0
        axis.set_xticks(range(len(labels)), labels, rotation=rotation)
        axis.set_yticks(range(len(labels)), labels)
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color,
                fontsize=9,
            )  # fmt: skip
    return figure


def _drawable(labels: Sequence[str]) -> list[str]:
    """The labels, or their numbers if they cannot be drawn."""
    from matplotlib import font_manager, ft2font

    path = font_manager.findfont(font_manager.FontProperties())
    glyphs = ft2font.FT2Font(path).get_charmap()
    if all(ord(character) in glyphs for label in labels for character in label):
        return list(labels)
    return list(map(str, range(len(labels))))


def series(records: Records, split: str, name: str) -> tuple[list[int], list[float]]:
    """The steps at which a split has a metric, and its values."""
    chosen = [r for r in records if r["split"] == split and name in r]
    return [r["step"] for r in chosen], [r[name] for r in chosen]


def new_figure(panels: int, *, width: float = 5.2, height: float = 4.0) -> tuple[Any, Any]:
    """A figure and its axes side by side; inches of each."""
    # No pyplot: it would look for a display and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels)).tolist()
