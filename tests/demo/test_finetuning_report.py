"""The report of the fine-tuning demo, from given results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from plug_jax.data.sources.demo_reviews import Review, Reviews
from plug_jax.demo.finetuning_report import Arm, Comparison, Together, write_report
from plug_jax.demo.ngram_baseline import NgramBaseline, ngram_baseline

TEST = [Review(f"pos-{n}", f"好{n}", "pos") for n in range(60)]
TEST += [Review(f"neg-{n}", f"坏{n}", "neg") for n in range(40)]


def arm(*test: float) -> Arm:
    records = [{"step": step, "split": "validation", "accuracy": 50.0 + step} for step in (10, 20)]
    return Arm({1e-3: 81.0, 5e-4: 80.0}, 1e-3, [80.0, 82.0], list(test), [records, records])


def comparison(pretrained: Arm, scratch: Arm) -> Comparison:
    # 54 of 60 good ones and 36 of 40 bad ones are classified correctly.
    answers = [
        {"prediction": review.label if n % 10 else {"pos": "neg", "neg": "pos"}[review.label]}
        for n, review in enumerate(TEST)
    ]
    return Comparison(
        stage1={"step": 600, "metrics": {}},
        reviews=Reviews({"train": [], "dev": [], "test": TEST}, 250, 140, 10),
        baseline=NgramBaseline(
            {"1-2 characters, C 3": 85.0}, "1-2 characters, C 3", 85.0, 88.0, []
        ),
        pretrained=pretrained,
        scratch=scratch,
        together=Together(["a", "b"], 85.5, 84.0, 90.0, answers),
        seconds={"baseline": {"wall": 3.0, "cpu": 5.0}},
    )


def test_what_it_shows_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path, comparison(arm(82.0, 84.0), arm(80.0, 81.0)))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    assert "**Pre-training helps**: +2.50 points" in report
    assert "(82.00 to 84.00 with it, 80.00 to 81.00 without)" in report
    assert "**The ensemble reaches the n-grams** on test: +2.00 points" in report
    assert "the mean of single runs -5.00; a difference below 6.0 may be chance" in report
    assert "| pre-trained encoder, fine-tuned, 2 seeds | 81.00 ± 1.41 | 83.00 ± 1.41 |" in report
    assert "| 0.0005 | 80.00 | 80.00 |\n| 0.001 | 81.00 | 81.00 |" in report
    assert "| neg | 36 | 4 |\n| pos | 6 | 54 |" in report
    assert "baseline 3 s (5 s CPU)" in report
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["pretraining_helps"] is True
    assert summary["gain_of_pretraining"] == 2.5
    assert summary["standard_error_of_test"] == pytest.approx(3.0)
    assert summary["reviews"] == {
        "lines": 250, "repeated": 140, "contradictory": 10, "train": 0, "dev": 0, "test": 100,
    }  # fmt: skip
    assert summary["scratch"]["test_mean"] == 80.5
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "id": "pos-1", "text": "好1", "label": "pos", "prediction": "pos",
    }  # fmt: skip
    assert len(lines) == 100


def test_seeds_that_overlap_show_nothing(tmp_path: Path) -> None:
    found = comparison(arm(80.5, 84.0), arm(80.0, 81.0))
    found = dataclasses.replace(found, together=dataclasses.replace(found.together, test=87.0))
    write_report(tmp_path, found)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**No significant gain from pre-training**: +1.75 points" in report
    assert "**The ensemble does not reach the n-grams** on test: -1.00 points" in report


def test_the_baseline_is_picked_on_dev_and_scored_on_test() -> None:
    def texts(count: int) -> list[tuple[str, str]]:
        return [(f"{'很好' if n % 2 else '不好'}{n % 7}", "ab"[n % 2]) for n in range(count)]

    flipped = [(text, {"a": "b", "b": "a"}[label]) for text, label in texts(20)]
    found = ngram_baseline(texts(60), texts(30), flipped, say=lambda line: None)
    assert found.setting == "1-2 characters, C 3"  # the first of equal ones
    assert (found.dev, found.test) == (100.0, 0.0)
    assert found.predictions == [label for _, label in texts(20)]
    assert len(found.tried) == 12
