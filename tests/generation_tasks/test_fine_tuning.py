"""From official files and a checkpoint to texts and their scores, through the commands."""

import json

import pytest

from plug_jax.cli.main import main
from tests.generation_tasks.official_files import dureader_qg
from tests.stored_model import write_stored_model

# Only characters that the stored model knows; all answers are equal, so the context is needed.
PAIRS = [
    ("天", "东南西北天", "风花雪月年"),
    ("天", "春夏秋冬天", "牛羊马鸟鱼虫"),
    ("天", "金木水火天", "山石田力口手心"),
]
LENGTHS = {"MAX_SOURCE_LENGTH": 12, "MAX_TARGET_LENGTH": 9}
SMALL = """
from __gin__ import dynamic_registration
from plug_jax import config
DECODER_LAYERS = 2
config.PlugConfig:
  vocab_size = 60
  vocab_multiple = 64
  hidden_size = 32
  num_encoder_layers = 1
  num_heads = 4
  head_dim = 8
  mlp_dim = 64
  max_positions = 48
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The current directory: a checkpoint `model`, the task's files in `qg`, and small.gin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    (tmp_path / "model").mkdir()
    write_stored_model(tmp_path / "model")
    dureader_qg(tmp_path / "qg", PAIRS)
    (tmp_path / "small.gin").write_text(SMALL)
    return tmp_path


def command(name, *files, **macros):
    gin_files = [f"--gin_file={file}" for file in (*files, "mesh/cpu1.gin")]
    return [name, *gin_files, *(f"--gin.{macro}={value!r}" for macro, value in macros.items())]


@pytest.mark.slow
def test_official_files_to_scores(directory, capsys):
    task = {"GENERATION_DIR": "qg", **LENGTHS}
    training = command(
        "train",
        "runs/finetune_generation.gin",
        "generation/dureader_qg.gin",
        "small.gin",
        MODEL_DIR="tuned",
        INITIAL_CHECKPOINT="model",
        TRAIN_STEPS=150,
        EPOCHS=None,
        BATCH_SIZE=8,  # the tests have eight devices
        LEARNING_RATE=5e-3,
        DROPOUT_RATE=0.0,
        EVAL_EVERY=150,
        CHECKPOINT_EVERY=150,
        **task,
    )
    assert main(training) == 0
    summary = json.loads((directory / "tuned" / "summary.json").read_text())
    assert summary["metrics"]["decoder_accuracy"] == pytest.approx(1)
    inference = command(
        "infer",
        "runs/infer.gin",
        "generation/dureader_qg.gin",
        CHECKPOINT="tuned",
        OUTPUT="texts.jsonl",
        **task,
    )
    assert main(inference) == 0
    rows = [json.loads(line) for line in (directory / "texts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert [row["references"] for row in rows] == [[question] for _, _, question in PAIRS]
    for row in rows:  # of the released beam search
        (best,) = row["generated"]
        tokens = best["tokens"] + (best["finish_reason"] == "stop")
        assert best["score"] == pytest.approx(best["log_prob"] / ((5 + tokens) / 6) ** 0.6)
    capsys.readouterr()
    assert main(["score-generation", "--predictions", "texts.jsonl", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert (metrics["bleu_4"], metrics["rouge_l"]) == pytest.approx((100, 100))


def test_what_is_missing_is_named_before_anything_is_read(directory, capsys):
    files = ["runs/finetune_generation.gin", "generation/dureader_qg.gin", "small.gin"]
    given = {"MODEL_DIR": "tuned", "TRAIN_STEPS": 1, "EPOCHS": None, "BATCH_SIZE": 8, **LENGTHS}
    assert main(command("train", *files, INITIAL_CHECKPOINT="model", **given)) == 2
    assert "GENERATION_DIR" in capsys.readouterr().err
    assert main(command("train", *files, GENERATION_DIR="qg", **given)) == 2
    assert "INITIAL_CHECKPOINT" in capsys.readouterr().err
    given |= {"INITIAL_CHECKPOINT": "model", "GENERATION_DIR": "qg"}
    assert main(command("train", *files, LAYOUT="paddle", **given)) == 2
    assert "no layout 'paddle'; there are plug, paddlenlp" in capsys.readouterr().err
