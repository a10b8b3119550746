"""The pre-training tasks and mixtures that gin names, over each kind of source."""

import collections

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.drops import change_counts, drop_counts, reset_counts
from plug_jax.data.features import PALM, STRUCTBERT
from plug_jax.data.pipeline import pipeline
from plug_jax.data.preprocessors.cleaning import MinLength
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.data.vocabularies.vocabulary import (
    SPECIAL_PIECES,
    default_vocabulary,
    load_vocabulary,
)
from plug_jax.errors import PlugError
from plug_jax.tasks import pretrain
from tests.cached_corpus import cache
from tests.tfds_data import build_tfds

SENTENCE = "天地人你我他她它们的，天地人你我他她它们的。"
ARTICLE = (
    f"\n_START_ARTICLE_\n天地\n_START_SECTION_\n人\n_START_PARAGRAPH_\n{SENTENCE}_NEWLINE_"
    + (SENTENCE * 12)
)
TFDS = {
    "wiki40b_zh": ("wiki40b/zh-cn:1.3.0", ["train", "validation", "test"]),
    "wikipedia_zh": ("wikipedia/20230601.zh:1.0.0", ["train"]),
    "mc4_zh": ("c4/multilingual:3.1.0", ["zh", "zh-validation"]),
}
DOMAINS = {"news": "天", "novels": "地", "poems": "人", "qa": "你"}


@pytest.fixture(autouse=True)
def fresh_counts():
    reset_counts()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The path of a vocabulary with an id for each character of the sentence."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    pieces = [*SPECIAL_PIECES, *dict.fromkeys(SENTENCE)]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return str(path)


def examples(name, split="train", **lengths):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        lengths or None, split=split, shuffle=False, seed=1, num_epochs=1,
    )  # fmt: skip
    return list(dataset.as_numpy_iterator())


# --- TFDS


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for dataset, splits in TFDS.values():
        text = ARTICLE if dataset.startswith("wiki40b") else SENTENCE * 13
        texts = [text] * (100 if len(splits) == 1 else 3)
        build_tfds(directory, dataset, dict.fromkeys(splits, texts))
    return directory


@pytest.fixture
def prepared(tfds_dir):
    """The registered tasks, with data."""
    for stage in ("structbert", "palm"):
        for name in TFDS:
            loader = seqio.TaskRegistry.get(f"{stage}_{name}").source.tfds_dataset
            loader.override_data_dir(str(tfds_dir))
    yield
    for stage in ("structbert", "palm"):
        for name in TFDS:
            seqio.TaskRegistry.get(f"{stage}_{name}").source.tfds_dataset.override_data_dir(None)


@pytest.mark.parametrize("name", TFDS)
def test_tfds_tasks_are_registered_and_read(prepared, name):
    for stage, features in {"structbert": STRUCTBERT, "palm": PALM}.items():
        task = seqio.TaskRegistry.get(f"{stage}_{name}")
        assert task.output_features["encoder_input_tokens"].vocabulary == default_vocabulary()
        found = examples(task.name, "validation")
        names = {feature.name for feature in features}
        assert found and all(set(example) == names for example in found)
        for example in found:
            text = default_vocabulary().decode(example["encoder_original_tokens"])
            assert set(text) <= {*SENTENCE} and len(text) > 20
        for split in task.splits:
            assert task.source.list_shards(split)
        if name == "wikipedia_zh":  # the last hundredth is held out
            sizes = [task.num_input_examples(split) for split in ("train", "validation")]
            assert sizes == [99, 1]
    assert ("wiki40b_markup" in change_counts()) == (name == "wiki40b_zh")
    assert drop_counts().keys() <= {"tail_too_short", "tail_tokens", "no_other_document"}


def test_tfds_tasks_without_data_are_listed_and_say_what_to_do(tmp_path):
    source = seqio.TaskRegistry.get("palm_wiki40b_zh").source
    source.tfds_dataset.override_data_dir(str(tmp_path))
    try:
        config = pipeline.DatasetConfig(
            "palm_wiki40b_zh", {"encoder": 512, "decoder": 512}, "train", 1, True, 0
        )
        with pytest.raises(PlugError, match="tfds build wiki40b/zh-cn:1.3.0 --data_dir"):
            next(pipeline.make_iterator(config))
    finally:
        source.tfds_dataset.override_data_dir(None)
    assert tuple(seqio.TaskRegistry.get("palm_mc4_zh").splits) == ("train", "validation")


@pytest.mark.slow
def test_a_tfds_dataset_of_ones_own(tmp_path, vocabulary):
    build_tfds(tmp_path, "wiki40b/ja:1.3.0", {"train": [ARTICLE, "天"]}, text_feature="body")
    options = dict(
        dataset="wiki40b/ja:1.3.0",
        splits={"train": "train"},
        text_feature="body",
        data_dir=str(tmp_path),
        vocabulary=vocabulary,
        cleaning=[MinLength(5)],
    )
    name = pretrain.palm_tfds(min_length=8, max_length=20, **options)
    assert name == "palm_wiki40b_ja_1_3_0"
    found = examples(name)
    assert {len(example["encoder_input_tokens"]) for example in found} <= {*range(8, 21)}
    assert change_counts() == {"wiki40b_markup": 1} and drop_counts()["too_short_text"] == 1
    assert pretrain.structbert_tfds(max_length=20, name="own_tfds", **options) == "own_tfds"
    assert max(len(example["encoder_input_tokens"]) for example in examples("own_tfds")) <= 20


# --- files


def test_stage_2_reads_the_cache_of_stage_1(tmp_path, vocabulary):
    (tmp_path / "a.txt").write_text(f"{SENTENCE * 5}\n" * 20, encoding="utf-8")
    files = dict(validation_files=None, vocabulary=vocabulary)
    name = pretrain.structbert_text(train_files=str(tmp_path / "a.txt"), name="cached", **files)
    cache(seqio.TaskRegistry.get(name), tmp_path)
    records = str(tmp_path / "cached" / "train.tfrecord-*")
    source = TokenSource(train=records)
    tokenised = seqio.TaskRegistry.get(name).source.get_dataset("train", shuffle=False)
    tokenised = seqio.TaskRegistry.get(name).preprocess_precache(tokenised, seed=0)
    blocks = source.get_dataset("train", shuffle=False)
    for cached, block in zip(blocks, tokenised, strict=True):
        for feature in ("tokens", "sentence_lengths", "document_lengths"):
            np.testing.assert_array_equal(cached[feature], block[feature])
    pretrain.palm_text(train_files=records, file_format="tokens", name="palm_again", **files)
    found = examples("palm_again")
    assert len(found) >= 20
    for example in found:
        text = load_vocabulary(vocabulary).decode(example["decoder_target_tokens"])
        assert text in SENTENCE * 5
    pretrain.structbert_text(train_files=records, file_format="tokens", name="again", **files)
    assert examples("again")
    with pytest.raises(PlugError, match="'again' cannot be cached"):
        cache(seqio.TaskRegistry.get("again"), tmp_path / "other")


def test_tokens_are_not_cleaned():
    source = TokenSource(train="none")
    for make in (pretrain.structbert_task, pretrain.palm_task):
        with pytest.raises(PlugError, match="Tokens cannot be cleaned"):
            make("cleaned", source, default_vocabulary(), cleaning=[MinLength(5)])


def test_tokens_of_another_vocabulary_end_the_run(tmp_path, vocabulary):
    path = str(tmp_path / "a.tfrecord")
    ids = tf.train.Feature(int64_list=tf.train.Int64List(value=[5, 6, 7] * 50 + [999]))
    example = tf.train.Example(features=tf.train.Features(feature={"tokens": ids}))
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(example.SerializeToString())
    name = pretrain.palm_text(
        train_files=path,
        validation_files=None,
        vocabulary=vocabulary,
        file_format="tokens",
        name="foreign",
    )
    config = pipeline.DatasetConfig(
        name, {"encoder": 512, "decoder": 512}, "train", 1, False, 0, num_epochs=1
    )
    with pytest.raises(PlugError, match="^A record has the id 999, but WordPieceVocabulary"):
        next(pipeline.make_iterator(config))


def test_files_and_vocabulary_are_asked_for(vocabulary):
    for make in (pretrain.structbert_text, pretrain.palm_text):
        with pytest.raises(PlugError, match="TRAIN_FILES is not set"):
            make(train_files=None, validation_files=None, vocabulary=vocabulary)
        with pytest.raises(PlugError, match="VOCABULARY is not set"):
            make(train_files="a.txt", validation_files=None, vocabulary=None)


# --- mixtures


@pytest.fixture(scope="module")
def domains(tmp_path_factory, vocabulary):
    """Files of one-character documents, by domain: 1 document of "news", 2 of "novels"."""
    directory = tmp_path_factory.mktemp("domains")
    files = {"train_files": {}, "validation_files": {}}
    for number, (domain, character) in enumerate(DOMAINS.items(), start=1):
        for argument, of_domains in files.items():
            path = directory / f"{argument}_{domain}.txt"
            path.write_text(f"{character * 61}\n" * number, encoding="utf-8")
            of_domains[domain] = str(path)
    return {**files, "vocabulary": vocabulary}


def count_domains(found, vocabulary):
    pieces = load_vocabulary(vocabulary)
    names = {pieces.encode(character)[0]: name for name, character in DOMAINS.items()}
    return collections.Counter(
        names[int(example["encoder_original_tokens"][1])] for example in found
    )


def test_a_mixture_has_the_rates_asked_for(domains):
    rates = {"news": 4, "novels": 3, "poems": 1, "qa": 2}
    name = pretrain.palm_mixture(rates=rates, **domains)
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        {}, split="train", shuffle=False, seed=1, num_epochs=None
    )
    found = count_domains(dataset.take(2000).as_numpy_iterator(), domains["vocabulary"])
    for domain, rate in rates.items():
        assert found[domain] / 2000 == pytest.approx(rate / 10, abs=0.05)  # 4 standard deviations


def test_evaluation_reads_every_domain_wholly(domains):
    name = pretrain.palm_mixture(rates=dict.fromkeys(DOMAINS, 1.0), name="whole", **domains)
    assert {task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))} == {
        f"whole_{domain}" for domain in DOMAINS
    }
    config = pipeline.DatasetConfig(
        name, {"encoder": 64, "decoder": 64}, "validation", 4, False, 0, num_epochs=1, pack=False
    )
    rows = [
        row for batch in pipeline.make_iterator(config) for row in batch["encoder_input_tokens"]
    ]
    assert sum(bool(row.any()) for row in rows) == 1 + 2 + 3 + 4


def test_a_mixture_for_stage_1_of_several_formats(domains, tmp_path):
    (tmp_path / "qa.jsonl").write_text(
        '{"content": "' + "你" * 40 + '。我我"}\n' * 3, encoding="utf-8"
    )
    train = {"news": domains["train_files"]["news"], "qa": str(tmp_path / "qa.jsonl")}
    name = pretrain.structbert_mixture(
        rates={"news": 1, "qa": 1},
        train_files=train,
        validation_files=None,
        vocabulary=domains["vocabulary"],
        file_format={"news": "lines", "qa": "jsonl"},
        text_key={"qa": "content"},
        cleaning=[MinLength(10)],
        max_length=24,
    )
    again = pretrain.structbert_mixture(
        rates={"news": 1, "qa": 3},
        train_files=train,
        validation_files=None,
        vocabulary=domains["vocabulary"],
        file_format={"news": "lines", "qa": "jsonl"},
        text_key="content",  # of all that have fields
    )
    assert again == name  # replacing it
    mixture = seqio.get_mixture_or_task(name)
    assert tuple(mixture.splits) == ("train",) and mixture.total_rate == 4
    assert set(mixture.output_features) == {feature.name for feature in STRUCTBERT}
    found = count_domains(examples(f"{name}_qa", encoder_input_tokens=24), domains["vocabulary"])
    assert set(found) == {"qa"}


def test_json_lines_without_the_field(vocabulary, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "你我"}\n')
    name = pretrain.structbert_text(
        train_files=str(path),
        validation_files=None,
        vocabulary=vocabulary,
        file_format="jsonl",
        name="without_the_field",
    )
    config = pipeline.DatasetConfig(name, {"encoder": 64}, "train", 4, False, 0)
    reset_counts()
    with pytest.raises(PlugError, match=r"missing_text_key 1\. Name the field .* in TEXT_KEY"):
        next(pipeline.make_iterator(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_files": {"news": "a"}}, "rates and train_files differ in poems:"),
        ({"validation_files": {"news": "a"}}, "rates and validation_files differ in poems:"),
        ({"file_format": {"news": "lines"}}, "rates and file_format differ in poems:"),
        ({"text_key": {"songs": "k"}}, "text_key of the mixture names songs, which its rates lack"),
        ({"text_key": {"news": "k"}}, "'k' is for JSON lines, but the file format is 'lines'"),
        ({"text_key": "k"}, "'k' is for JSON lines, but the file format is 'lines'"),
        ({"text_key": "k", "file_format": "tokens"}, "'k' is for JSON lines; files of tokens"),
        ({"rates": {"news": 1, "poems": 0}}, "rate of 'poems' in the mixture is 0"),
        ({"rates": {"news": float("nan"), "poems": 1}}, "rates must be a dict"),
        ({"rates": {}, "train_files": {}}, "has no domain"),
    ],
)
def test_mixtures_that_are_refused(vocabulary, change, message):
    arguments = {
        "rates": {"news": 1, "poems": 1},
        "train_files": {"news": "a", "poems": "b"},
        "validation_files": None,
        "vocabulary": vocabulary,
    }
    for make in (pretrain.structbert_mixture, pretrain.palm_mixture):
        with pytest.raises(PlugError, match=message):
            make(**(arguments | change))
