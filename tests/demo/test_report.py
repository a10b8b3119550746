"""The demo's report, from given results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from plug_jax.demo import pretraining
from plug_jax.demo.baselines import Baselines
from plug_jax.demo.report import Results, write_results
from plug_jax.demo.text_quality import TextQuality
from plug_jax.errors import PlugError
from plug_jax.objectives.stages import PALM


def test_summary_and_report(tmp_path: Path, capsys) -> None:
    stage1 = {"mlm_accuracy": 0.1, "sentence_accuracy": 0.5, "word_order_accuracy": 0.3}
    stage2 = {"mlm_accuracy": 0.2, "decoder_perplexity": 150.0}
    results = Results(
        stage1=stage1,
        stage2=stage2,
        perplexity_before_last_phase=160.0,
        baselines=Baselines(700.0, 0.04, 1 / 3),
        ngrams={2: 115.0, 3: 66.0},
        texts={"今天": "天气好", "明天": ""},
        quality={"the model": TextQuality(31.5, 0.5), "people": TextQuality(44.0, 0.75)},
        seconds={"stage1": 3.0, "stage2": 4.5},
        config={"stage1": {}, "stage2": {}},
    )
    write_results(tmp_path, results)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["held_out"] == {
        "mlm_accuracy": 0.2,  # of the final model; metrics that only stage 1 has are stage 1's
        "sentence_accuracy": 0.5,
        "word_order_accuracy": 0.3,
        "decoder_perplexity": 150.0,
        "decoder_perplexity_before_last_phase": 160.0,
        "decoder_perplexity_after_last_phase": 150.0,
    }
    assert summary["baseline"]["unigram_perplexity"] == 700.0
    assert summary["baseline"]["ngram_perplexity"] == {"2": 115.0, "3": 66.0}
    assert summary["seconds"] == {"stage1": 3.0, "stage2": 4.5, "total": 7.5}
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    by_counting = "115 / 66 (Kneser-Ney, 2 to 3 characters)"
    assert f"| decoder perplexity | 150 | {by_counting} |" in report
    assert "| the model | 31.5 | 0.500 |" in report and "| people | 44 | 0.750 |" in report
    assert summary["quality"]["people"] == {"ngram_perplexity": 44.0, "distinct_2": 0.75}
    assert "- 今天 **天气好**\n- 明天 (ended at once)\n" in report
    assert capsys.readouterr().out.strip() == report.strip()


def test_steps_that_miss_the_phase_switch_are_refused_before_training() -> None:
    def config(train_steps: int, eval_every: int) -> SimpleNamespace:
        return SimpleNamespace(objectives=PALM, steps=train_steps, eval_every=eval_every)

    pretraining._check_switch_is_evaluated(config(400, 120))
    for train_steps, eval_every in ((100, 120), (400, 100), (1, 1)):
        with pytest.raises(PlugError, match="choose TRAIN_STEPS and EVAL_EVERY"):
            pretraining._check_switch_is_evaluated(config(train_steps, eval_every))
