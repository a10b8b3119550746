"""Pictures of a run: losses over the steps, and the lengths of what was read."""

from __future__ import annotations

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


def _series(records: Records, split: str, name: str) -> tuple[list[int], list[float]]:
    chosen = [r for r in records if r["split"] == split and name in r]
    return [r["step"] for r in chosen], [r[name] for r in chosen]


def _figure(panels: int) -> tuple[Any, Any]:
    # No pyplot: it would look for a display and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 4), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, panels)).tolist()
