"""Pictures of runs: losses and scores over the steps, lengths of what was read, confusions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]

_LOSSES = ("mlm_loss", "word_order_loss", "sentence_loss", "decoder_loss")


def plot_losses(
    stages: Mapping[str, Records], path: Path, *, marks: Mapping[str, tuple[int, str]]
) -> None:
    """One panel a stage: training losses by step (lines) and held-out ones (dots).

    Args:
        stages: records of metrics.jsonl by the panel's title.
        path: the PNG to write.
        marks: by title, a step to mark and what happens there.
    """
    figure, axes = _figure(len(stages))
    for axis, (title, records) in zip(axes, stages.items(), strict=True):
        for number, name in enumerate(_LOSSES):
            train = _series(records, "train", name)
            held_out = _series(records, "validation", name)
            color = f"C{number}"
            if train[0]:
                axis.plot(*train, color=color, alpha=0.75, linewidth=1.2, label=name)
            if held_out[0]:
                axis.plot(*held_out, "o", color=color, markersize=4)
        if title in marks:
            step, text = marks[title]
            axis.axvline(step, color="0.5", linestyle="--", linewidth=1)
            axis.annotate(
                text, (step, 0.5), xycoords=("data", "axes fraction"), ha="right", va="center",
                rotation=90, fontsize=8, color="0.4",
            )  # fmt: skip
        axis.set(title=title, xlabel="step", ylabel="loss (nats); dots: held-out")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


@dataclasses.dataclass(frozen=True)
class Learning:
    """A panel of `plot_learning`."""

    records: Records  # of metrics.jsonl
    metrics: Sequence[str]
    lines: Mapping[str, float] = dataclasses.field(default_factory=dict)  # to compare with, by name
    logarithmic: bool = False


def plot_learning(panels: Mapping[str, Learning], path: Path) -> None:
    """Held-out metrics by the minutes that training steps took, and, above, by their tokens.

    Args:
        panels: by title.
        path: the PNG to write.
    """
    figure, axes = _figure(len(panels), height=4.4)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        steps, minutes, tokens = _work(panel.records)
        for name in panel.metrics:
            at, values = _series(panel.records, "validation", name)
            axis.plot(np.interp(at, steps, minutes), values, "o-", markersize=4, label=name)
        for number, (name, value) in enumerate(panel.lines.items()):
            axis.axhline(value, color=str(0.2 + 0.15 * number), linestyle="--", linewidth=1)
            axis.annotate(
                f"{name}: {value:.4g}", (0.02, value), xycoords=("axes fraction", "data"),
                va="bottom", fontsize=7, color="0.3",
            )  # fmt: skip
        if panel.logarithmic:
            axis.set_yscale("log")
        axis.set(title=title, xlabel="minutes of training steps")
        axis.set_xlim(left=0)
        above = axis.secondary_xaxis("top", functions=_proportional(minutes, tokens / 1e6))
        above.set_xlabel("million tokens")
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _work(records: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the steps that were logged, from 0: the minutes and the tokens up to each."""
    logged = [r for r in records if r["split"] == "train"]
    steps = np.array([0, *(r["step"] for r in logged)])
    seconds = np.diff(steps) * [r.get("step_seconds", 0.0) for r in logged]
    tokens = seconds * [r["tokens_per_second"] for r in logged]
    minutes, sums = (np.concatenate(([0.0], np.cumsum(x))) for x in (seconds / 60, tokens))
    return steps, minutes, sums


def _proportional(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """y of x and x of y, of two that rise together from 0 to their last."""
    slope = float(y[-1] / x[-1]) if x[-1] > 0 and y[-1] > 0 else 1.0
    return (lambda value: value * slope), (lambda value: value / slope)


def plot_lengths(
    lengths: Mapping[str, Sequence[int]], path: Path, *, bounds: Mapping[str, tuple[int, int]]
) -> None:
    """One histogram for each kind of length, with the asked range [low, high] shaded."""
    figure, axes = _figure(len(lengths))
    for axis, (title, values) in zip(axes, lengths.items(), strict=True):
        low, high = bounds[title]
        axis.axvspan(low, high, color="C0", alpha=0.12, label=f"asked: {low} to {high}")
        # By length, because bars need not hold the same number of lengths each.
        edges = np.linspace(min(low, *values), max(high, *values) + 1, 33).round()
        counts, edges = np.histogram(values, np.unique(edges))
        axis.stairs(counts / np.diff(edges), edges - 0.5, fill=True, color="C0")
        axis.set(
            title=f"{title} (mean {np.mean(values):.0f})",
            xlabel="tokens",
            ylabel="examples of a length",
        )
        axis.set_xlim(left=0)
        axis.margins(y=0.2)
        axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)


def plot_curves(
    groups: Mapping[str, Sequence[Records]],
    metric: str,
    path: Path,
    *,
    lines: Mapping[str, float] | None = None,
) -> None:
    """A held-out metric by step: the mean over the runs of a group, and a band of all of them.

    Where runs of a group were evaluated at different steps, only those that all have are drawn.

    Args:
        groups: for each run of a group, the records of its metrics.jsonl; by the group's name.
        metric: its name in them.
        path: the PNG to write.
        lines: values to compare with, by name.
    """
    figure, (axis,) = _figure(1, width=7.0)
    for number, (name, runs) in enumerate(groups.items()):
        curves = [
            dict(zip(*_series(records, "validation", metric), strict=True)) for records in runs
        ]
        curves = [curve for curve in curves if curve]  # of runs that were evaluated
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
        axis.axhline(value, color=str(0.3 + 0.2 * number), linestyle="--", linewidth=1, label=name)
    axis.set(xlabel="step", ylabel=f"{metric} on dev; bands: all seeds")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


_NAMED_LABELS = 20  # more than these are drawn without names and numbers


def confusion_figure(counts: np.ndarray, labels: Sequence[str]) -> Any:
    """A table in colours: of each gold label (row), how many were predicted as each (column).

    Args:
        counts: int [C, C].
        labels: C names; where no installed font can draw them, their numbers stand for them.
    """
    labels = _drawable(labels)
    named = len(labels) <= _NAMED_LABELS
    size = max(3.2, 0.55 * len(labels) + 1.6) if named else 7.0
    figure, (axis,) = _figure(1, width=size + 0.6, height=size)
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
    """The labels, or their numbers."""
    from matplotlib import font_manager, ft2font

    path = font_manager.findfont(font_manager.FontProperties())
    glyphs = ft2font.FT2Font(path).get_charmap()
    if all(ord(character) in glyphs for label in labels for character in label):
        return list(labels)
    return list(map(str, range(len(labels))))


def _series(records: Records, split: str, name: str) -> tuple[list[int], list[float]]:
    chosen = [r for r in records if r["split"] == split and name in r]
    return [r["step"] for r in chosen], [r[name] for r in chosen]


def _figure(panels: int, *, width: float = 5.2, height: float = 4.0) -> tuple[Any, Any]:
    # No pyplot: it would look for a display and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels)).tolist()
