"""Plots of the demo: losses and scores by step, lengths of the examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.plots import Records, new_figure, series

_LOSSES = ("mlm_loss", "word_order_loss", "sentence_loss", "decoder_loss")


def plot_losses(
    stages: Mapping[str, Records], path: Path, *, marks: Mapping[str, tuple[int, str]]
) -> None:
    """One panel per stage: training losses by step (lines) and held-out ones (dots).

    Args:
        stages: records of metrics.jsonl by the panel's title.
        path: the PNG to write.
        marks: by title, a step to mark and what happens there.
    """
    figure, axes = new_figure(len(stages))
    for axis, (title, records) in zip(axes, stages.items(), strict=True):
        for number, name in enumerate(_LOSSES):
            train = series(records, "train", name)
            held_out = series(records, "validation", name)
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
    """Held-out metrics by training minutes and, on the upper axis, by tokens.

    Args:
        panels: by title.
        path: the PNG to write.
    """
    figure, axes = new_figure(len(panels), height=4.4)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        steps, minutes, tokens = _work(panel.records)
        for name in panel.metrics:
            at, values = series(panel.records, "validation", name)
            axis.plot(np.interp(at, steps, minutes), values, "o-", markersize=4, label=name)
        for number, (name, value) in enumerate(panel.lines.items()):
            axis.axhline(value, color=str(0.2 + 0.15 * number), linestyle="--", linewidth=1)
            axis.annotate(
                f"{name}: {value:.4g}", (0.02, value), xycoords=("axes fraction", "data"),
                va="bottom", fontsize=7, color="0.3",
            )  # fmt: skip
        if panel.logarithmic:
            axis.set_yscale("log")
        axis.set(title=title, xlabel="training time (minutes)")
        axis.set_xlim(left=0)
        above = axis.secondary_xaxis("top", functions=_proportional(minutes, tokens / 1e6))
        above.set_xlabel("million tokens")
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _work(records: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logged steps from 0, with the minutes and tokens up to each."""
    logged = [r for r in records if r["split"] == "train"]
    steps = np.array([0, *(r["step"] for r in logged)])
    seconds = np.diff(steps) * [r.get("step_seconds", 0.0) for r in logged]
    tokens = seconds * [r["tokens_per_second"] for r in logged]
    minutes, sums = (np.concatenate(([0.0], np.cumsum(x))) for x in (seconds / 60, tokens))
    return steps, minutes, sums


def _proportional(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    """Functions y(x) and x(y), for two series that rise together from 0."""
    slope = float(y[-1] / x[-1]) if x[-1] > 0 and y[-1] > 0 else 1.0
    return (lambda value: value * slope), (lambda value: value / slope)


def plot_lengths(
    lengths: Mapping[str, Sequence[int]], path: Path, *, bounds: Mapping[str, tuple[int, int]]
) -> None:
    """One histogram per kind of length, with the requested range [low, high] shaded."""
    figure, axes = new_figure(len(lengths))
    for axis, (title, values) in zip(axes, lengths.items(), strict=True):
        low, high = bounds[title]
        axis.axvspan(low, high, color="C0", alpha=0.12, label=f"requested: {low} to {high}")
        # Per length, because bars may cover different numbers of lengths.
        edges = np.linspace(min(low, *values), max(high, *values) + 1, 33).round()
        counts, edges = np.histogram(values, np.unique(edges))
        axis.stairs(counts / np.diff(edges), edges - 0.5, fill=True, color="C0")
        axis.set(
            title=f"{title} (mean {np.mean(values):.0f})",
            xlabel="tokens",
            ylabel="examples",
        )
        axis.set_xlim(left=0)
        axis.margins(y=0.2)
        axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=110)
