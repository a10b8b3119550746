"""`plug-jax infer`, `classify` and `evaluate` on fine-tuned checkpoints, as commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from plug_jax.cli.main import main
from plug_jax.clue.tasks import find_task
from plug_jax.inference.fine_tuned import FineTunedModel
from plug_jax.tasks.clue import clue_format
from tests.clue.official import write_clue
from tests.downstream.tiny_encoder import write_encoder, write_fine_tuned

MAX_LENGTH = 32


@pytest.fixture(scope="module")
def clue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clue")
    write_clue(directory, {"tnews", "afqmc", "c3"})
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("runs") / "encoder")


@pytest.fixture(scope="module")
def tnews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TNEWS run whose labels are in another order than in the code."""
    format = clue_format(find_task("tnews"), MAX_LENGTH)
    turned = dataclasses.replace(format, labels=format.labels[::-1])
    return write_fine_tuned(tmp_path_factory.mktemp("runs") / "tnews", "clue_tnews", turned)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process: JAX has started already and cannot look for other processes."""
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")


def command(name: str, *files: str, **macros: object) -> list[str]:
    return [
        name,
        *(f"--gin_file={file}" for file in (*files, "mesh/cpu1.gin")),
        *(f"--gin.{macro}={value!r}" for macro, value in macros.items()),
    ]


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_infer_answers_files_and_tasks(tnews, clue_dir, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "今天的股票"}\n{"n": 1}\n', encoding="utf-8")
    output = tmp_path / "out.jsonl"
    infer = command("infer", "runs/infer.gin", CHECKPOINT=str(tnews), OUTPUT=str(output))
    assert main([*infer, f"--gin.INPUT={str(source)!r}"]) == 3
    first, second = read_rows(output)
    assert first.keys() == {"text", "prediction", "probabilities"}
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["prediction"] == max(first["probabilities"], key=first["probabilities"].get)
    assert second.keys() == {"n", "error"}
    capsys.readouterr()
    # Nothing is generated, so generation options are refused.
    assert main([*infer, f"--gin.INPUT={str(source)!r}", "--gin.NUM_SAMPLES=4"]) == 2
    assert (
        "fine-tuned for 'clue_tnews' answers with its own head, reads NUM_SAMPLES: it is for"
        in (capsys.readouterr().err)
    )

    output = tmp_path / "test.jsonl"
    macros = {"CHECKPOINT": str(tnews), "OUTPUT": str(output), "CLUE_DIR": str(clue_dir)}
    infer = command("infer", "runs/infer.gin", "clue/tnews.gin", SPLIT="test", **macros)
    assert main(infer) == 0
    records = find_task("tnews").read(clue_dir, "test").records
    assert [row["id"] for row in read_rows(output)] == [record.id for record in records]
    assert [row["text"] for row in read_rows(output)] == [record.texts[0] for record in records]


def test_classify_uses_the_head(tnews, tmp_path, capsys):
    classify = ["classify", "--checkpoint", str(tnews)]
    assert main([*classify, "--text", "今天的股票", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    [row] = said["rows"]
    assert list(row["probabilities"]) == list(find_task("tnews").labels[::-1])
    # Only labels that the model has count, also if given as numbers.
    source = tmp_path / "rows.jsonl"
    rows = [{"text": "今天的股票", "label": int(row["prediction"])}, {"text": "球", "label": "x"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main([*classify, "--input", str(source), "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    expected = {"rows": 2, "labeled": 1, "unknown_labels": 1, "correct": 1, "accuracy": 1.0}
    assert total.items() >= expected.items()

    pair = ["--text", "今天的股票", "--text_pair", "球赛", "--json"]
    assert main([*classify, *pair]) == 0
    [of_pair] = json.loads(capsys.readouterr().out)["rows"]
    assert of_pair["probabilities"] != row["probabilities"]


def test_options_that_are_not_for_a_checkpoint_are_refused(tnews, encoder, tmp_path, capsys):
    c3 = write_fine_tuned(tmp_path / "c3", "clue_c3", clue_format(find_task("c3"), MAX_LENGTH))

    def said(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    classify = ("classify", "--text", "今天", "--checkpoint")
    own = said(*classify, str(tnews), "--labels", "a,b", "--template", "{label}")
    assert "--labels, --template: for zero-shot" in own and "has 15 labels of its own" in own
    assert "reads NORMALIZE" in said(*classify, str(tnews), "--gin.NORMALIZE='sum'")
    assert "fine-tuned for 'clue_c3', which does not label texts" in said(*classify, str(c3))
    assert "has no decoder" in said(*classify, str(encoder), "--labels", "a,b")
    assert "give the first as --text" in said(
        "classify", "--checkpoint", str(tnews), "--text_pair", "a"
    )
    for arguments in (
        ("generate", "--prompt", "今天"),
        ("score", "--prompt", "今天", "--target", "天"),
    ):
        assert "was fine-tuned for 'clue_tnews'" in said(*arguments, "--checkpoint", str(tnews))


def test_evaluate_scores_by_what_the_checkpoint_keeps(tnews, encoder, clue_dir, capsys):
    macros = {"CHECKPOINT": str(tnews), "CLUE_DIR": str(clue_dir), "BATCH_SIZE": 8}
    evaluate = command("evaluate", "runs/evaluate_finetuned.gin", **macros)
    assert main(evaluate) == 0
    found = json.loads(capsys.readouterr().out)

    model = FineTunedModel.load(tnews)
    records = find_task("tnews").read(clue_dir, "validation").records
    examples = model.examples(model.format.examples(records, model.vocabulary))
    logits = model.outputs(examples)["classification_logits"].astype(np.float64)
    numbers = [model.format.labels.index(record.label) for record in records]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(records)), numbers]
    assert found["classification_loss"] == pytest.approx(losses.mean(), abs=1e-5)
    hits = np.mean(logits.argmax(axis=1) == numbers)
    assert found["accuracy"] == pytest.approx(100 * hits)
    assert found["classification_accuracy"] == pytest.approx(hits)

    for change, message in (
        ("CLUE_TASK='afqmc'", "the labels of 'clue_afqmc' are ('0', '1'), and those of the"),
        ("CLUE_TASK='c3'", "of the kind 'text', and 'clue_c3' is one of the kind 'choice'"),
        ("SPLIT='test'", "the split 'test' of 'clue_tnews' has no gold answers to score by"),
        ("CHECKPOINT=" + repr(str(encoder)), "was not fine-tuned"),
    ):
        kept = [one for one in evaluate if change.partition("=")[0] not in one]
        assert main([*kept, f"--gin.{change}"]) == 2
        assert message in capsys.readouterr().err


def test_evaluate_gives_the_scores_of_training(encoder, clue_dir, tmp_path, capsys):
    macros = {"CLUE_DIR": str(clue_dir), "BATCH_SIZE": 8}
    train = command(
        "train",
        "runs/finetune.gin",
        "clue/tnews.gin",
        MODEL_DIR=str(tmp_path / "run"),
        INITIAL_CHECKPOINT=str(encoder),
        MAX_LENGTH=MAX_LENGTH,
        EPOCHS=None,
        TRAIN_STEPS=3,
        EVAL_EVERY=3,
        **macros,
    )
    assert main(train) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    capsys.readouterr()
    macros["CHECKPOINT"] = str(tmp_path / "run")
    assert main(command("evaluate", "runs/evaluate_finetuned.gin", **macros)) == 0
    assert json.loads(capsys.readouterr().out) == summary["metrics"]
