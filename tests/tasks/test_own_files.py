"""Tasks over the user's own files: what they read, and errors for malformed files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.pipeline.stream_settings import changes, stream_settings
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES
from plug_jax.downstream.number_format import NumberFormat, ranks
from plug_jax.downstream.record_task import RecordTask
from plug_jax.errors import PlugError
from plug_jax.tasks import own_files
from tests.downstream.tiny_encoder import write_encoder

TSV = "text\tlabel\n好\tgood\n不好\tbad\n很好\tgood\n"


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_PIECES, *"好不很"]) + "\n", encoding="utf-8")
    return str(path)


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def registered(name: str) -> RecordTask:
    task = seqio.TaskRegistry.get(name)
    assert isinstance(task, RecordTask)
    return task


def records(task: RecordTask, split: str) -> list[Any]:
    return list(task.splits_of_records.records(split))


def test_the_three_formats_say_the_same(tmp_path: Path, vocabulary: str) -> None:
    rows = [{"text": "好", "label": "good"}, {"text": "不好", "label": "bad"}]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"text": "很好", "label": "good"}])
    found = []
    for path in (
        write(tmp_path / "a.tsv", TSV),
        write(tmp_path / "a.csv", TSV.replace("\t", ",")),
        write(tmp_path / "a.jsonl", lines),
    ):
        labels = own_files.labels(train_file=path)
        assert labels == ("bad", "good")
        name = own_files.classification(vocabulary=vocabulary, labels=labels, train_file=path)
        found.append(records(registered(name), "train"))
    assert found[0] == found[1] == found[2]
    assert [(one.id, one.texts, one.label) for one in found[0]] == [
        (0, ("好",), "good"),
        (1, ("不好",), "bad"),
        (2, ("很好",), "good"),
    ]


def test_files_that_are_not_on_this_machine(vocabulary: str) -> None:
    path = "ram://own_files/train.tsv"
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(TSV)
    labels = own_files.labels(train_file=path)
    name = own_files.classification(vocabulary=vocabulary, labels=labels, train_file=path)
    split = registered(name).splits_of_records.read("train")
    assert [one.texts for one in split.records] == [("好",), ("不好",), ("很好",)]
    assert (split.path, split.sizes) == (path, {path: len(TSV.encode())})


def test_pairs_ids_other_columns_and_a_test_file_without_labels(
    tmp_path: Path, vocabulary: str
) -> None:
    train = write(tmp_path / "train.jsonl", '{"id": "x", "a": "好", "b": "不", "stars": 10}\n')
    test = write(tmp_path / "test.jsonl", '{"a": "好", "b": "很"}\n')
    name = own_files.classification(
        vocabulary=vocabulary,
        labels=("9", "10"),
        train_file=train,
        test_file=test,
        text=("a", "b"),
        label="stars",
        name="pairs",
    )
    assert name == "pairs"
    task = registered(name)
    (one,) = records(task, "train")
    assert (one.id, one.texts, one.label) == ("x", ("好", "不"), "10")
    assert records(task, "test")[0].label is None
    assert set(task.splits) == {"train", "test"}


def test_labels_of_whole_numbers_are_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n好\t10\n好\t9\n好\t-1\n")
    assert own_files.labels(train_file=path) == ("-1", "9", "10")
    assert own_files.labels(train_file=path, labels=("9", "10", "-1")) == ("9", "10", "-1")


@pytest.mark.parametrize("other", ["--5", "-", "²", "5-", "9" * 5000, "5.0"])
def test_labels_that_only_look_like_whole_numbers_are_in_the_alphabets_order(
    tmp_path: Path, other: str
) -> None:
    path = write(tmp_path / "a.tsv", f"text\tlabel\n好\t10\n好\t9\n好\t{other}\n")
    assert own_files.labels(train_file=path) == tuple(sorted(["10", "9", other]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text\tlabel\n好\tgood\n不\tbadd\n",
            r"train\.tsv, line 3: the label 'badd' is not one of",
        ),
        ("text\tlabel\n好\t\n", r"train\.tsv, line 2: 'label' is empty"),
        ("txt\tlabel\n好\tgood\n", r"train\.tsv, line 2: there is no 'text'; it has 'txt'"),
        ("text\tlabel\n好\tgood\tbad\n", r"train\.tsv, line 2: 3 columns; expected 2"),
        ("text\tlabel\n", r"train\.tsv has no record"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    content: str, message: str, tmp_path: Path, vocabulary: str
) -> None:
    path = write(tmp_path / "train.tsv", content)
    name = own_files.classification(vocabulary=vocabulary, labels=("bad", "good"), train_file=path)
    with pytest.raises(PlugError, match=message):
        records(registered(name), "train")


def test_files_that_give_no_labels_or_scale_are_refused(tmp_path: Path, vocabulary: str) -> None:
    one = write(tmp_path / "a.tsv", "text\tlabel\n好\t3\n不\t3\n")
    with pytest.raises(PlugError, match="'label' has the one value '3'"):
        own_files.labels(train_file=one)
    with pytest.raises(PlugError, match="'label' has the one value 3; expected"):
        own_files.regression(vocabulary=vocabulary, train_file=one)
    word = write(tmp_path / "b.tsv", "text\tlabel\n好\t3\n不\tthree\n")
    with pytest.raises(PlugError, match=r"b\.tsv, line 3: 'three' is not a number"):
        own_files.regression(vocabulary=vocabulary, train_file=word)


def test_a_checkpoint_of_the_task_fixes_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    checkpoint = str(write_encoder(tmp_path / "encoder"))
    assert own_files.labels(train_file=path, checkpoint=checkpoint) == ("bad", "good")
    told = {"name": "reviews", "kind": "text", "labels": ["good", "bad", "new"]}
    monkeypatch.setattr(
        own_files, "open_checkpoint", lambda path: type("Saved", (), {"task": told})
    )
    as_told = own_files.labels(train_file=path, checkpoint=checkpoint, name="reviews")
    assert as_told == ("good", "bad", "new")
    assert own_files.labels(train_file=path, checkpoint=checkpoint) == ("bad", "good")


def test_numbers_are_learned_on_one_scale_and_answered_on_theirs(
    tmp_path: Path, vocabulary: str
) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n好\t40\n不\t60\n很\t80\n")
    task = registered(own_files.regression(vocabulary=vocabulary, train_file=path))
    assert isinstance(task.format, NumberFormat)
    assert task.format.mean == 60
    assert task.format.deviation == pytest.approx((800 / 3) ** 0.5)
    examples = task.splits_of_records.examples("train")
    first = examples.values["regression_targets"][examples.splits[:-1]]
    np.testing.assert_allclose(first, [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)
    outputs = {"regression_values": np.array([-(1.5**0.5), 1.5**0.5, 0], np.float32)}
    answers = task.splits_of_records.answers("train", outputs)
    assert [one["prediction"] for one in answers] == pytest.approx([40, 80, 60])
    metrics = task.splits_of_records.metrics("train", outputs)
    # Covariance of (-1, 0, 1) and (-1, 1, 0) is half of their variance; errors 0, 20, 20.
    assert metrics == pytest.approx(
        {"pearson": 50, "spearman": 50, "rmse": (800 / 3) ** 0.5}, rel=1e-5
    )


def test_resuming_notices_other_columns_and_another_file(
    tmp_path: Path, vocabulary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    table = "text\tother\tlabel\tsecond\n好\t不\tgood\tbad\n不好\t很\tbad\tgood\n"
    path = tmp_path / "a.tsv"

    def settings(content: str = table, **columns: Any) -> dict[str, Any]:
        write(path, content)
        name = own_files.classification(
            vocabulary=vocabulary, labels=("bad", "good"), train_file="~/a.tsv", **columns
        )
        task = registered(name)
        config = DatasetConfig(
            name, {"encoder": 128}, "train", batch_size=2, shuffle=True, seed=0, pack=False
        )
        return json.loads(json.dumps(stream_settings(config, task, list(task.output_features))))

    then, size = settings(), len(table.encode())
    assert changes(then, settings()) == []
    assert changes(then, settings(text="other")) == ["records.text: text then, other now"]
    assert changes(then, settings(label="second")) == ['records.label: "label" then, "second" now']
    assert changes(then, settings(table + "好\t不\tgood\tbad\n")) == [
        f"records.files: ~/a.tsv ({size} bytes) then, ~/a.tsv ({size + 17} bytes) now"
    ]


def test_correlations_are_those_of_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(0, 5, 50).astype(float), rng.normal(size=50)
    format_ = NumberFormat(max_length=8)
    records = [SimpleNamespace(number=value) for value in gold]
    metrics = format_.metrics(records, [{"prediction": value} for value in predicted])  # type: ignore[arg-type]
    assert metrics["pearson"] == pytest.approx(100 * stats.pearsonr(gold, predicted).statistic)
    assert metrics["spearman"] == pytest.approx(100 * stats.spearmanr(gold, predicted).statistic)
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    constant = format_.metrics(records, [{"prediction": 1.0}] * 50)  # type: ignore[arg-type]
    assert np.isnan(constant["pearson"])
