"""Resuming with other data settings: each change is named, with the old and the new value."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import seqio
import tensorflow as tf

from plug_jax.data.pipeline.batched_task import BatchedMixture, BatchedTask
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.data.pipeline.stream_settings import changes, stream_settings
from plug_jax.data.preprocessors import cleaning
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary
from plug_jax.tasks.stages import palm_task, structbert_task

TEXT = "天气很好，我们出去走走。山里有水，水里有鱼。大家都来看看，好不好？多年以后他又来了。"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> PlugVocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(TEXT)]
    path.write_text("\n".join(pieces), encoding="utf-8")
    return load_vocabulary(path)


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Two files of text, as a glob."""
    for number in range(2):
        (tmp_path / f"news{number}.txt").write_text(f"{TEXT}\n" * 3, encoding="utf-8")
    return str(tmp_path / "news*.txt")


def config_of(name: str, **changed: Any) -> DatasetConfig:
    config = DatasetConfig(
        name, {"encoder": 64}, "train", batch_size=4, shuffle=True, seed=1, packing_window=8
    )
    return dataclasses.replace(config, **changed)


def structbert(files: str, vocabulary: PlugVocabulary, **options: Any) -> BatchedTask:
    return structbert_task("structbert", TextSource(train=files), vocabulary, **options)


def settings_of(task: seqio.Task | seqio.Mixture, **changed: Any) -> dict[str, Any]:
    """As restored from a checkpoint."""
    return json.loads(
        json.dumps(
            stream_settings(config_of(task.name, **changed), task, list(task.output_features))
        )
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 2}, "batch_size: 4 then, 2 now"),
        ({"feature_lengths": {"encoder": 128}}, "feature_lengths.encoder: 64 then, 128 now"),
        ({"pack": False}, "pack: true then, false now"),
        ({"packing_window": 9}, "packing_window: 8 then, 9 now"),
        ({"seed": 2}, "seed: 1 then, 2 now"),
        ({"shuffle": False}, "shuffle: true then, false now"),
        ({"num_epochs": 1}, "num_epochs: null then, 1 now"),
        ({"streams": 2}, "streams: null then, 2 now"),
    ],
)
def test_fields_of_the_data(
    files: str, vocabulary: PlugVocabulary, changed: dict[str, Any], message: str
) -> None:
    task = structbert(files, vocabulary)
    assert changes(settings_of(task), settings_of(task)) == []
    assert changes(settings_of(task), settings_of(task, **changed)) == [message]


def test_features_that_the_objectives_of_a_run_ask_for(
    files: str, vocabulary: PlugVocabulary
) -> None:
    task = structbert(files, vocabulary)
    names = list(task.output_features)
    config = config_of(task.name)
    fewer = stream_settings(config, task, [name for name in names if name != "encoder_shuffled"])
    assert changes(fewer, stream_settings(config, task, names)) == [
        "features: none of these then, encoder_shuffled now"
    ]


def test_where_things_are_looked_for_does_not_matter(
    files: str, vocabulary: PlugVocabulary
) -> None:
    task = structbert(files, vocabulary)
    elsewhere = settings_of(task, module="tasks.pretrain", cache_dirs=("caches",))
    assert changes(settings_of(task), elsewhere) == []


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({}, {"mask_rate": 0.3}, "masked_language_model.mask_rate: 0.15 then, 0.3 now"),
        ({}, {"shuffle_window": 4}, "shuffle_windows.window: 3 then, 4 now"),
        ({}, {"shuffle_rate": 0.1}, "shuffle_windows.rate: 0.05 then, 0.1 now"),
        ({}, {"max_length": 40}, "sentence_pairs.max_length: 512 then, 40 now"),
        (
            {"cleaning": [cleaning.MinLength(3)]},
            {"cleaning": [cleaning.MinLength(4)]},
            "clean_documents.steps: MinLength(characters=3) then, MinLength(characters=4) now",
        ),
        (
            {"cleaning": [cleaning.HalfWidth(), cleaning.MinLength(3)]},
            {"cleaning": [cleaning.MinLength(3), cleaning.HalfWidth()]},
            "clean_documents.steps: in another order now",
        ),
        (
            {},
            {"cleaning": [cleaning.HalfWidth()]},
            "clean_documents.steps: none of these then, HalfWidth() now",
        ),
    ],
)
def test_options_of_stage_1(
    files: str, vocabulary: PlugVocabulary, then: dict, now: dict, message: str
) -> None:
    old, new = (settings_of(structbert(files, vocabulary, **options)) for options in (then, now))
    assert changes(old, new) == [message]


def test_options_of_stage_2(files: str, vocabulary: PlugVocabulary) -> None:
    def settings(**options: Any) -> dict[str, Any]:
        return settings_of(palm_task("palm", TextSource(train=files), vocabulary, **options))

    changed = {
        "min_length": 40,
        "max_length": 400,
        "close_at_document_end_only": True,
        "sentence_end_probability": 0.5,
    }
    assert changes(settings(), settings(**changed)) == [
        "sample_lengths.min_length: 32 then, 40 now",
        "sample_lengths.max_length: 512 then, 400 now",
        "sample_lengths.close_at_document_end_only: false then, true now",
        "sample_lengths.sentence_end_probability: 0.0 then, 0.5 now",
    ]
    other_stage = changes(settings_of(structbert(files, vocabulary)), settings())
    assert other_stage[0] == 'mixture_or_task_name: "structbert" then, "palm" now'
    assert len(other_stage) == 9 and other_stage[8].endswith(" more")


def test_files_and_how_they_are_read(
    files: str, vocabulary: PlugVocabulary, tmp_path: Path
) -> None:
    before = settings_of(structbert(files, vocabulary))
    first, size = tmp_path / "news0.txt", len(TEXT.encode()) * 3 + 3
    with first.open("a") as file:
        file.write("\n天")
    (tmp_path / "news2.txt").write_text(TEXT, encoding="utf-8")
    assert changes(before, settings_of(structbert(files, vocabulary))) == [
        f"files: {first} ({size} bytes) then, {first} ({size + 4} bytes), "
        f"{tmp_path / 'news2.txt'} ({len(TEXT.encode())} bytes) now"
    ]
    source = TextSource(train=files, file_format="paragraphs")
    task = structbert_task("structbert", source, vocabulary)
    assert 'source.reader.arguments.file_format: "lines" then, "paragraphs" now' in changes(
        before, settings_of(task)
    )


def test_another_vocabulary(files: str, vocabulary: PlugVocabulary, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text((Path(vocabulary._path)).read_text().replace("天\n气", "气\n天"))
    (said,) = changes(
        settings_of(structbert(files, vocabulary)),
        settings_of(structbert(files, load_vocabulary(path))),
    )
    assert said.startswith("vocabulary: ") and said.count("sha256") == 2


def test_domains_and_rates_of_a_mixture(files: str, vocabulary: PlugVocabulary) -> None:
    def mixture(**rates: float) -> dict[str, Any]:
        source = TextSource(train=files)
        domains = [(structbert_task(name, source, vocabulary), rates[name]) for name in rates]
        return settings_of(BatchedMixture("mixture", domains))

    then = mixture(news=0.4, poems=0.6)
    assert changes(then, mixture(news=0.4, poems=0.6)) == []
    assert changes(then, mixture(news=0.5, poems=0.6)) == ["news.rate: 0.4 then, 0.5 now"]
    named = changes(then, mixture(news=0.4, novels=0.6))
    assert named[0] == "poems.rate: 0.6 then, absent now" and named[-1].endswith(" more")


class Odd:
    """A preprocessor that cannot be described."""

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset

    def __repr__(self) -> str:
        raise RuntimeError


@seqio.map_over_dataset
def add(example: dict[str, tf.Tensor], amount: int) -> dict[str, tf.Tensor]:
    return {name: value + 0 * amount for name, value in example.items()}


@pytest.fixture
def any_task() -> Iterator[Callable[..., seqio.Task]]:
    def register(*preprocessors: Any) -> seqio.Task:
        if "any_task" in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove("any_task")
        read = lambda split, shuffle_files: tf.data.Dataset.range(3)  # noqa: E731
        feature = seqio.Feature(seqio.PassThroughVocabulary(9))
        return seqio.TaskRegistry.add(
            "any_task",
            source=seqio.FunctionDataSource(read, splits=["train"]),
            preprocessors=list(preprocessors),
            output_features={"encoder_input_tokens": feature},
        )

    yield register
    seqio.TaskRegistry.remove("any_task")


def test_any_preprocessor(any_task: Callable[..., seqio.Task]) -> None:
    """Options by name, a function used twice, sets in any order, NaN, and odd objects."""

    def settings(*preprocessors: Any) -> dict[str, Any]:
        found = stream_settings(config_of("any_task"), any_task(*preprocessors), [])
        return json.loads(json.dumps(found))

    names = {str(i) for i in range(30)}
    then = settings(
        functools.partial(add, amount=1),
        Odd(),
        functools.partial(add, amount=float("nan")),
        functools.partial(Odd(), names=names),
    )
    again = settings(
        functools.partial(add, amount=1),
        Odd(),
        functools.partial(add, amount=float("nan")),
        functools.partial(Odd(), names=set(sorted(names, reverse=True))),
    )
    assert then["add.amount"] == 1 and changes(then, again) == []
    now = settings(
        functools.partial(add, amount=1),
        functools.partial(add, amount=2),
        Odd(),
        functools.partial(Odd(), names=names - {"7"}),
    )
    assert changes(then, now) == [
        "preprocessors: in another order now",
        "add (2).amount: NaN then, 2 now",
        "Odd (2).names: 7 then, none of these now",
    ]
