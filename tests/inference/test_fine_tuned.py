"""Fine-tuned inference: outputs equal to evaluation's, answers to rows, and messages."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import seqio

import plug_jax
from plug_jax.checkpoints.saved_model import open_checkpoint
from plug_jax.clue.tasks import find_task
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.downstream.record_task import SplitRecords
from plug_jax.errors import PlugError
from plug_jax.inference.fine_tuned import FineTunedModel, text_length
from plug_jax.inference.jobs import Job, run
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.prediction import Prediction
from plug_jax.inference.rows import Row, RowSource
from plug_jax.inference.scoring import Scoring
from plug_jax.partitioning import Partitioner
from plug_jax.tasks.clue import clue_format, clue_task
from plug_jax.training.evaluate import Evaluator
from plug_jax.training.step import StepConfig
from tests.clue.official import FOLDER_OF, write_clue
from tests.downstream.tiny_encoder import write_encoder, write_fine_tuned

# A task of each kind, with the maximum text length here and how contexts are split.
LENGTHS = {
    "tnews": {"max_length": 48},
    "c3": {"max_length": 64},
    "chid": {"max_length": 40},
    "cmrc2018": {"max_length": 40, "max_question": 16, "stride": 8},
    "cluener": {"max_length": 48},
}
KINDS = tuple(LENGTHS)


@pytest.fixture(scope="module")
def clue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clue")
    write_clue(directory, {FOLDER_OF[name] for name in KINDS})
    return directory


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The MODEL_DIR of a run for a task."""

    @functools.cache
    def write(name: str) -> Path:
        directory = tmp_path_factory.mktemp("runs") / name
        format = clue_format(find_task(name), **LENGTHS[name])
        return write_fine_tuned(directory, f"clue_{name}", format)

    return write


@pytest.fixture(scope="module")
def evaluated(clue_dir: Path, run_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """Records of a task's validation split, and the evaluator's outputs for them."""

    @functools.cache
    def evaluate(name: str) -> tuple[SplitRecords, Any]:
        saved = open_checkpoint(run_of(name))
        task = clue_task(
            find_task(name),
            str(clue_dir),
            saved.vocabulary(),
            clue_format(find_task(name), **LENGTHS[name]),
        )
        if task.name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(task.name)
        seqio.TaskRegistry.add_provider(task.name, task)
        model = FineTunedModel.load(run_of(name))
        data = DatasetConfig(
            mixture_or_task_name=task.name,
            feature_lengths={"encoder": task.format.row_length},
            split="validation",
            batch_size=8,
            shuffle=False,
            seed=0,
            num_epochs=1,
            pack=False,
        )
        mesh = Partitioner(data=1, devices=tuple(jax.devices()[:1]))
        objectives = (task.format.make_objective(),)
        evaluator = Evaluator(saved.config, objectives, data, mesh, StepConfig())
        return task.splits_of_records, evaluator.outputs(model.params)

    return evaluate


@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_those_of_evaluation(name, run_of, evaluated):
    records, expected = evaluated(name)
    model = FineTunedModel.load(run_of(name), batch_size=32)
    examples = model.examples(records.examples("validation"))
    assert len(examples) == len(next(iter(expected.values())))
    shortest = min(map(text_length, examples))
    assert model.bucket(shortest) < records.format.max_length or name == "cmrc2018"
    # All together in the longest bucket, in several batches; then the shortest alone, in its own.
    made = model.outputs(examples)
    alone = min(range(len(examples)), key=lambda i: text_length(examples[i]))
    short = model.outputs([examples[alone]])
    for key, values in expected.items():
        length = made[key].shape
        assert length[0] == len(examples)
        np.testing.assert_allclose(_within(values, made[key]), made[key], rtol=1e-5, atol=1e-5)
        one = short[key][0]
        np.testing.assert_allclose(_within(values[alone], one), one, rtol=1e-5, atol=1e-5)


def _within(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The array cut to another's shape."""
    return values[tuple(slice(size) for size in like.shape)]


@pytest.mark.parametrize("name", KINDS)
def test_rows_have_the_answers_of_evaluation(name, run_of, evaluated, tmp_path):
    records, outputs = evaluated(name)
    split = records.records("validation")
    if name == "chid":  # rows are processed one by one
        split = [dataclasses.replace(record, line=i) for i, record in enumerate(split)]
    expected = records.format.answers(split, records.examples("validation"), outputs)
    job = Job(
        checkpoint=str(run_of(name)),
        rows=RowSource(mixture_or_task_name=f"clue_{name}", split="validation"),
        output=str(tmp_path / "out.jsonl"),
        batch_size=24,
    )
    rows = list(run(job, Prediction()))
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert rows == [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == [record.id for record in split]
    assert [row["prediction"] for row in rows] == [answer["prediction"] for answer in expected]
    for row, answer in zip(rows, expected, strict=True):
        assert answer.keys() <= row.keys()
        if "probabilities" in answer:
            assert row["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)
        if "nbest" in answer:
            scores = [[one["score"] for one in of["nbest"]] for of in (row, answer)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def answers_of(model_dir: Path, rows: list[dict], **settings: Any) -> list[dict]:
    job = Job(checkpoint=str(model_dir), rows=[Row(row) for row in rows], **settings)
    return list(run(job, Prediction()))


ROWS = [{"text": "今天的股票", "n": 1}, {"sentence1": "球赛" * 20, "sentence2": "游戏"}]


def test_a_row_has_the_same_answer_in_any_batch_and_on_any_mesh(run_of):
    expected = [answers_of(run_of("tnews"), [row])[0] for row in ROWS]
    mesh = Partitioner(data=2, fsdp=2, tensor=2)
    for settings in ({"batch_size": 1}, {"batch_size": 8, "partitioner": mesh}):
        for row, alone in zip(answers_of(run_of("tnews"), ROWS, **settings), expected, strict=True):
            assert row.keys() == alone.keys()
            assert row["prediction"] == alone["prediction"]
            assert row["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-6)
    assert [row.get("n") for row in expected] == [1, None]


def test_a_long_context_is_read_a_few_windows_at_a_time(run_of, monkeypatch):
    context = "".join(f"第{n}天的花园里有{n}朵花。" for n in range(40))
    row = {"context": context, "question": "花园里有什么？"}
    [whole] = answers_of(run_of("cmrc2018"), [row], batch_size=1024)
    sizes = []
    real = FineTunedModel.padded

    def padded(self, tree, rows):
        sizes.append(rows)
        return real(self, tree, rows)

    monkeypatch.setattr(FineTunedModel, "padded", padded)
    [parts] = answers_of(run_of("cmrc2018"), [row], batch_size=8)
    assert len(sizes) > 3 and max(sizes) == 8
    assert parts["prediction"] == whole["prediction"] in context
    scores = [[one["score"] for one in of["nbest"]] for of in (parts, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("settings", [{"int8": True}, {"dtype": "bfloat16"}])
def test_other_precisions_say_nearly_the_same(run_of, settings):
    for row, exact in zip(
        answers_of(run_of("tnews"), ROWS, **settings),
        answers_of(run_of("tnews"), ROWS),
        strict=True,
    ):
        difference = np.subtract(
            list(row["probabilities"].values()), list(exact["probabilities"].values())
        )
        assert 0 < np.abs(difference).max() < 0.01


def test_a_row_that_is_none_of_the_task_has_an_error_in_its_place(run_of):
    rows = [
        {"context": "今天", "question": "哪天"},
        {"context": "今天"},
        {"context": "今\ud800天", "question": "哪天", "prediction": "old"},
        {"context": "", "question": ""},
    ]
    found = answers_of(run_of("cmrc2018"), rows)
    assert [row.get("prediction") for row in found][1:] == [None, None, ""]
    assert found[0]["prediction"] in ("今天", "今", "天")
    assert "a row needs the text 'question'; it has 'context'" in found[1]["error"]
    assert "half of a surrogate pair" in found[2]["error"]
    for name, row, message in (
        (
            "tnews",
            {"title": "今天"},
            "a row needs `text`, or `text` and `text_pair`; it has 'title'",
        ),
        ("c3", {"passage": "", "question": "", "choices": ["一"]}, "a list of 2 to 4 texts"),
        ("chid", {"left": "", "right": "", "candidates": ["一"]}, "a list of 10 texts"),
        ("cluener", {}, "a row needs the text 'text'; it has nothing"),
        ("cluener", {"text": ["今天"]}, "field 'text' must hold text, not a list"),
    ):
        [answer] = answers_of(run_of(name), [row])
        assert message in answer["error"]


def test_a_row_without_numbers_has_an_error_and_a_model_without_them_ends_the_job(
    run_of, monkeypatch
):
    model = FineTunedModel.load(run_of("tnews"))
    embeddings = model.params["embeddings"]
    broken = embeddings["position_embeddings"].at[40].set(np.nan)
    model.params = {**model.params, "embeddings": {**embeddings, "position_embeddings": broken}}
    monkeypatch.setattr(FineTunedModel, "load", lambda *args, **kwargs: model)
    sound, without = answers_of(
        run_of("tnews"), [{"text": "天"}, {"text": "天" * 45}], batch_size=1
    )
    assert sound["prediction"] and "gives no numbers" in without["error"]
    with pytest.raises(NoNumbersError):
        answers_of(run_of("tnews"), [{"text": "天" * 45}])


def test_labels_are_those_that_the_checkpoint_keeps(run_of, tmp_path):
    """Their order in the code may have changed since."""
    format = clue_format(find_task("tnews"), **LENGTHS["tnews"])
    turned = dataclasses.replace(format, labels=format.labels[::-1])
    other = write_fine_tuned(tmp_path / "turned", "clue_tnews", turned)
    for row, as_is in zip(answers_of(other, ROWS), answers_of(run_of("tnews"), ROWS), strict=True):
        assert list(row["probabilities"]) == list(format.labels[::-1])
        numbers = [list(format.labels).index(of["prediction"]) for of in (row, as_is)]
        assert numbers[0] == len(format.labels) - 1 - numbers[1]


def test_what_a_checkpoint_is_not_for_is_said(run_of, tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    with pytest.raises(PlugError, match="this checkpoint was not fine-tuned for a task"):
        answers_of(encoder, ROWS)
    with pytest.raises(PlugError, match="fine-tuned for 'clue_tnews'.*`plug-jax classify`"):
        InferenceModel.load(run_of("tnews"))
    with pytest.raises(PlugError, match="fine-tuned for 'clue_c3'.*`plug-jax evaluate`$"):
        list(run(Job(checkpoint=str(run_of("c3")), rows=[Row({})]), Scoring()))


def test_a_loaded_model_takes_batches_as_large_as_asked(run_of, monkeypatch):
    rows: list[int] = []
    outputs = FineTunedModel._outputs_of_rows

    def counted(self, examples, length):
        rows.append(len(examples))
        return outputs(self, examples, length)

    monkeypatch.setattr(FineTunedModel, "_outputs_of_rows", counted)
    model = plug_jax.load(run_of("tnews"), batch_size=64)
    model.predict([{"sentence": "天"}] * 65)
    assert sorted(rows) == [1, 64]
