"""Record tasks as read by seqio and by training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqio

from plug_jax.clue.tasks import CLUE
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.data.pipeline.stream_settings import changes, stream_settings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary
from plug_jax.downstream.record_task import RecordTask, check_task, record_counts, task_description
from plug_jax.errors import PlugError
from plug_jax.named_modules import import_named
from plug_jax.objectives.classification import Classification
from plug_jax.objectives.span import Span
from tests.clue.official import files_of, write_clue, write_vocabulary

clue = import_named("plug_jax.tasks.clue")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> PlugVocabulary:
    return load_vocabulary(write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.txt"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clue(tmp_path_factory.mktemp("data") / "clue", zipped=("chid", "ocnli")))


def registered(name: str, data_dir: str, vocabulary: PlugVocabulary) -> RecordTask:
    format_ = clue.clue_format(CLUE[name], 32 if CLUE[name].kind != "question" else 80)
    task = clue.clue_task(CLUE[name], data_dir, vocabulary, format_)
    if task.name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(task.name, task)
    return task


def batches(task: RecordTask, split: str, **settings: object) -> list[dict[str, np.ndarray]]:
    config = DatasetConfig(
        mixture_or_task_name=task.name,
        feature_lengths={"encoder": task.format.row_length},
        split=split,
        batch_size=4,
        seed=0,
        pack=False,
        **{"shuffle": False, "num_epochs": 1, **settings},  # type: ignore[arg-type]
    )
    return list(make_iterator(config))


@pytest.mark.parametrize("name", [name for name, task in CLUE.items() if "train" in task.splits])
def test_every_task_gives_each_example_once(
    name: str, data_dir: str, vocabulary: PlugVocabulary
) -> None:
    task = registered(name, data_dir, vocabulary)
    for split in ("train", "validation", "test"):
        found = batches(task, split)
        real = [
            int(index)
            for batch in found
            for index, segment in zip(
                batch["example_index"][:, 0], batch["encoder_segment_ids"][:, 0], strict=True
            )
            if segment
        ]
        assert real == list(range(task.num_examples(split)))
        assert all((batch["encoder_input_tokens"][:, 0] > 0).any() for batch in found)


def test_every_epoch_has_another_order_and_each_example_once(
    data_dir: str, vocabulary: PlugVocabulary
) -> None:
    task = registered("tnews", data_dir, vocabulary)
    config = DatasetConfig(
        mixture_or_task_name=task.name,
        feature_lengths={"encoder": 32},
        split="train",
        batch_size=4,
        shuffle=True,
        seed=3,
        pack=False,
    )
    rows = make_iterator(config)
    epochs = [
        np.concatenate([next(rows)["example_index"][:, 0] for _ in range(3)]).tolist()
        for _ in range(8)
    ]
    # seqio shuffles examples again after repeating, so an epoch's last ones may trade places
    # with the next one's first; overall, each of 12 occurs once per epoch.
    assert epochs[0] != epochs[1]
    counts = Counter(index for epoch in epochs for index in epoch)
    assert set(counts) == set(range(12)) and max(counts.values()) <= 16


def test_seqio_evaluates_it(data_dir: str, vocabulary: PlugVocabulary) -> None:
    """seqio's own Evaluator, with outputs that are correct for all but the first example."""
    task = registered("ocnli", data_dir, vocabulary)
    records = task.splits_of_records.records("validation")
    features = task.format.make_objective().features

    def predict(dataset, *args: object) -> list[tuple[int, dict[str, list[float]]]]:
        outputs = []
        for place, example in dataset:
            number = int(np.asarray(example["example_index"])[0])
            label = task.format.labels.index(records[number].label)
            label = (label + (number == 0)) % 3
            outputs.append((int(place), {"classification_logits": np.eye(3)[label].tolist()}))
        return outputs

    evaluator = seqio.Evaluator(
        mixture_or_task_name=task.name,
        feature_converter=RowFeatureConverter(features, pack=False),
        eval_split="validation",
        sequence_length=dict.fromkeys(task.output_features, 32),
        target_field_name="example_index",
    )
    metrics, _ = evaluator.evaluate(
        compute_metrics=True, step=0, predict_fn=predict, score_fn=lambda *_: []
    )
    found = metrics.result() if hasattr(metrics, "result") else metrics
    share = 100 * (len(records) - 1) / len(records)
    assert found[task.name]["accuracy"] == pytest.approx(share)


def test_metrics_need_every_example(data_dir: str, vocabulary: PlugVocabulary) -> None:
    task = registered("ocnli", data_dir, vocabulary)
    (metric,) = task.metric_fns
    places = [("validation", number) for number in range(task.num_examples("validation"))]
    outputs = [(place, {"classification_logits": [0.0, 1.0, 0.0]}) for place in places]
    assert set(metric(places, outputs)) == {"accuracy"}
    with pytest.raises(PlugError, match="1 of .* examples have no outputs, the first is 2"):
        metric(places, outputs[:2] + outputs[3:])


def test_what_was_dropped_is_said(data_dir: str, vocabulary: PlugVocabulary) -> None:
    task = registered("ocnli", data_dir, vocabulary)
    (line,) = record_counts(task.name, "validation")
    usable = len(CLUE["ocnli"].read(data_dir, "dev").records)
    assert line.startswith(f"clue_ocnli validation: {usable} records, {usable} examples, ")
    assert line.endswith("dropped: no_gold_label")


def test_an_objective_that_means_something_else_is_refused(
    data_dir: str, vocabulary: PlugVocabulary
) -> None:
    task = registered("ocnli", data_dir, vocabulary)
    labels = task.format.labels
    check_task(task.name, [Classification(labels=labels)])
    with pytest.raises(PlugError, match="the task's labels are .* and Classification.labels"):
        check_task(task.name, [Classification(labels=labels[::-1])])
    with pytest.raises(PlugError, match="needs the objective Classification, not Span"):
        check_task(task.name, [Span()])
    assert task_description(task.name) == {
        "name": "clue_ocnli",
        "kind": "text",
        "max_length": 32,
        "labels": list(labels),
    }


def settings_of(task: RecordTask, length: int = 512) -> dict[str, Any]:
    """As restored from a checkpoint."""
    config = DatasetConfig(
        task.name, {"encoder": length}, "train", batch_size=4, shuffle=True, seed=1, pack=False
    )
    found = stream_settings(config, task, list(task.output_features))
    return json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("cmrc2018", {"stride": 64}, "records.format.stride: 128 then, 64 now"),
        ("cmrc2018", {"max_question": 32}, "records.format.max_question: 64 then, 32 now"),
        ("drcd", {"max_length": 96}, "records.format.max_length: 80 then, 96 now"),
        ("tnews", {"max_length": 24}, "records.format.max_length: 32 then, 24 now"),
        ("cmrc2018", {"max_answer": 30}, None),
        ("chid", {"assignment": "optimal"}, None),
    ],
)
def test_resuming_notices_what_the_examples_depend_on(
    name: str, field: dict[str, Any], message: str | None, data_dir: str, vocabulary: PlugVocabulary
) -> None:
    """With rows as long as before."""
    task = registered(name, data_dir, vocabulary)
    format_ = dataclasses.replace(task.format, **field)
    other = clue.clue_task(CLUE[name], data_dir, vocabulary, format_)
    then = settings_of(task)
    assert changes(then, settings_of(task)) == []
    assert changes(then, settings_of(other)) == ([message] if message else [])


@pytest.mark.parametrize(
    ("name", "file"), [("c3", "m-train.json"), ("chid", "train_answer.json"), ("tnews", "")]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_resuming_notices_a_change_of_any_file(
    name: str,
    file: str,
    zipped: bool,
    vocabulary: PlugVocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = "plug_jax.data.pipeline.stream_settings._LONGEST_SHOWN"
    monkeypatch.setattr(longest, 1000)  # whole paths, however long
    file = file or "train.json"
    folder = tmp_path / name
    folder.mkdir()
    for one, content in files_of(name).items():
        (folder / one).write_bytes(content)

    def settings() -> dict[str, Any]:
        data_dir = folder
        if zipped:
            shutil.make_archive(str(tmp_path / "zips" / f"{name}_public"), "zip", folder)
            data_dir = tmp_path / "zips"
        return settings_of(registered(name, str(data_dir), vocabulary))

    then = settings()
    assert changes(then, settings()) == []
    size = (folder / file).stat().st_size
    with (folder / file).open("ab") as changed:
        changed.write(b"\n")
    (said,) = changes(then, settings())
    told = "files" if file == "train.json" and not zipped else "records.files"
    assert said.startswith(f"{told}: ") and f"{file} ({size:,} bytes) then" in said
    assert f"{file} ({size + 1:,} bytes) now" in said


def test_settings_of_older_versions_resume(data_dir: str, vocabulary: PlugVocabulary) -> None:
    now = settings_of(registered("c3", data_dir, vocabulary))
    then = {name: value for name, value in now.items() if not name.startswith("records.")}
    assert "files" in then and len(now) > len(then) and changes(then, now) == []
    assert changes({**then, "seed": 2}, now) == ["seed: 2 then, 1 now"]
    without_kind = {name: value for name, value in now.items() if name != "records.format.kind"}
    assert changes(without_kind, now) == ['records.format.kind: absent then, "choice" now']


def test_all_that_are_there_are_registered(data_dir: str) -> None:
    """Importing the module with the environment variable CLUE_DIR set."""
    clue.register_all(data_dir)
    task = seqio.get_mixture_or_task("clue_cmrc2018")
    assert task.format.max_length == 512 and "trial" in task.splits


def test_short_questions_leave_room_in_short_rows() -> None:
    assert clue.row_lengths("cmrc2018", 48, max_question=24) == {"encoder": 48}
    with pytest.raises(PlugError, match="max_length must be 72 or more, got 48"):
        clue.row_lengths("drcd", 48)
    assert clue.row_lengths("chid", 48) == {"encoder": 480}


def test_what_is_not_set_is_named(vocabulary: PlugVocabulary) -> None:
    with pytest.raises(PlugError, match="CLUE_DIR is not set"):
        clue.task(name="tnews", data_dir=None, vocabulary="vocab.txt")
    with pytest.raises(PlugError, match="no task 'tnew'; did you mean 'tnews'"):
        clue.task(name="tnew", data_dir=None, vocabulary=None)
