"""The fine-tuning demo on a few reviews, with a tiny encoder."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from plug_jax.cli.main import main
from plug_jax.data.sources import demo_reviews
from plug_jax.data.sources.demo_reviews import Review
from plug_jax.demo import finetuning
from plug_jax.finetuning import sweeps
from tests.downstream.tiny_encoder import write_encoder

# Bad and good words in the tiny encoder's vocabulary.
WORDS = {"neg": "不", "pos": "都"}


def few_reviews() -> demo_reviews.Reviews:
    rng = random.Random(0)
    reviews = []
    for number in range(240):
        label = demo_reviews.LABELS[number % 2]
        noise = "".join(rng.choices("天气手机花园电影书店", k=6))
        reviews.append(Review(f"{label}-{number}", noise + WORDS[label], label))
    return demo_reviews.divide(reviews)


@pytest.mark.slow
@pytest.mark.long
def test_it_trains_compares_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1 = write_encoder(tmp_path / "stage1")
    (stage1 / "summary.json").write_text(json.dumps({"step": 1, "metrics": {}}))
    monkeypatch.setattr(demo_reviews, "read_reviews", few_reviews)
    monkeypatch.setattr(finetuning, "LEARNING_RATES", (3e-3, 1e-9))
    monkeypatch.setattr(finetuning, "SEEDS", (0, 1))
    command = ["demo-finetune", f"--output={tmp_path}", "--gin.EPOCHS=None"]
    command += ["--gin.TRAIN_STEPS=30", "--gin.EVAL_EVERY=15", "--gin.BATCH_SIZE=8"]
    command += ["--gin.TASK_FEATURE_LENGTHS={'encoder': 64}", "--gin.MAX_LENGTH=32"]
    directory = tmp_path / "finetune"
    trained: list[str] = []
    train = sweeps.Sweep._train

    def once(self: sweeps.Sweep, run: sweeps.SweptRun, say: object) -> None:
        """Interrupted before the third run."""
        if len(trained) == 2:
            trained.append("broken off")
            raise KeyboardInterrupt
        trained.append(run.name)
        train(self, run, say)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "_JOBS", 1)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("XLA_FLAGS", "")  # its runs get one device, as outside the tests
    monkeypatch.setattr(sweeps.Sweep, "_train", once)
    assert main(command) == 130
    assert not (directory / "report.md").exists()
    baseline = (directory / "baseline.json").read_bytes()
    assert main(command) == 0
    assert (directory / "baseline.json").read_bytes() == baseline
    # From each initial encoder: both learning rates with seed 0, the better one with seed 1.
    assert [name for name in trained if name != "broken off"] == 2 * [
        "LEARNING_RATE=0.003,RANDOM_SEED=0",
        "LEARNING_RATE=1e-09,RANDOM_SEED=0",
        "LEARNING_RATE=0.003,RANDOM_SEED=1",
    ]
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    assert summary["pretrained"]["learning_rate"] == 0.003
    assert summary["pretrained"]["test"] == [100.0, 100.0]
    assert summary["baseline"]["test"] == 100.0
    assert summary["pretraining_helps"] is False  # equally good without it
    assert summary["reviews"]["lines"] == 240
    tests = few_reviews().splits["test"]
    lines = (directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [(one["id"], one["prediction"]) for one in predictions] == [
        (one.id, one.label) for one in tests
    ]
    assert sum(map(sum, summary["confusion"])) == len(tests)
    for name in ("curves.png", "confusion.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    assert (directory / "report.md").read_text(encoding="utf-8").strip() in capsys.readouterr().out
    count = len(trained)
    assert main(command) == 0
    assert len(trained) == count
    assert main([*command, "--gin.DROPOUT_RATE=0.2"]) == 2
    assert "holds results of another settings" in capsys.readouterr().err
    shutil.rmtree(directory)
