"""Training on a cache gives the same as on the text; a cache that does not match is refused."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import seqio

from plug_jax.data.caching.files import check_cache, check_token_files
from plug_jax.data.caching.run import cache_task
from plug_jax.data.pipeline.file_checks import check_files
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.data.pipeline.stream_settings import changes, stream_settings
from plug_jax.data.preprocessors.cleaning import MinLength
from plug_jax.data.sources.token_source import TokenSource
from plug_jax.errors import PlugError
from plug_jax.tasks.pretrain import add_palm, add_structbert, palm_task
from tests.cached_corpus import random_text, vocabulary_of, write_corpus

NAMES = ("cached_structbert", "cached_palm")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = ["".join(random_text(rng) for _ in range(rng.integers(1, 9))) for _ in range(150)]
    return write_corpus(tmp_path_factory.mktemp("text"), [documents])


def register(source, vocabulary, **options):
    cleaning = (MinLength(20),)
    return (
        add_structbert(NAMES[0], source, vocabulary, cleaning=cleaning, max_length=64, **options),
        add_palm(NAMES[1], source, vocabulary, cleaning=cleaning, min_length=8, max_length=40),
    )


@pytest.fixture(scope="module")
def cached(source, tmp_path_factory):
    """Where both tasks are cached."""
    directory = tmp_path_factory.mktemp("cache")
    for task in register(source, vocabulary_of(directory)):
        cache_task(task, str(directory), splits=["train"], workers=1)
    yield directory
    for name in NAMES:
        seqio.TaskRegistry.remove(name)


def config_of(name, directory):
    lengths = {"encoder": 64} if name == NAMES[0] else {"encoder": 64, "decoder": 64}
    return DatasetConfig(
        mixture_or_task_name=name,
        feature_lengths=lengths,
        split="train",
        batch_size=4,
        shuffle=True,
        seed=2,
        packing_window=64,
        use_cached=True,
        cache_dirs=(str(directory),),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_gives_the_same_batches_as_the_text(cached, source, name):
    register(source, vocabulary_of(cached))
    config = config_of(name, cached)
    from_cache = make_iterator(config)
    from_text = make_iterator(dataclasses.replace(config, use_cached=False))
    batches = list(itertools.islice(zip(from_cache, from_text, strict=True), 40))
    for one, other in batches:
        assert one.keys() == other.keys()
        for feature in one:
            np.testing.assert_array_equal(one[feature], other[feature])
    assert len({batch["encoder_input_tokens"].tobytes() for batch, _ in batches}) == 40


def test_token_files_of_another_vocabulary_are_refused(cached):
    def batches(vocabulary):
        source = TokenSource(train=f"{cached}/{NAMES[0]}/train.tfrecord-*")
        name = add_palm("palm_of_tokens", source, vocabulary, min_length=8, max_length=40).name
        return make_iterator(dataclasses.replace(config_of(name, cached), use_cached=False))

    try:
        assert next(batches(vocabulary_of(cached)))
        with pytest.raises(PlugError, match="tokens in .* are of another vocabulary than that of"):
            batches(vocabulary_of(cached, more=["xyz"]))
    finally:
        seqio.TaskRegistry.remove("palm_of_tokens")


def test_token_files_of_an_incomplete_cache_are_refused(cached, tmp_path):
    """Its finished files have their final names, so that a pattern finds those alone."""
    directory = tmp_path / "two_files"
    shutil.copytree(cached / NAMES[0], directory)
    [whole] = directory.glob("train.tfrecord-*")
    first, second = (directory / f"train.tfrecord-0000{n}-of-00002" for n in range(2))
    shutil.copy(whole, first)
    whole.rename(second)
    info = directory / "info.train.json"
    info.write_text(info.read_text().replace('"num_shards": 1', '"num_shards": 2'))

    def check(pattern):
        source = TokenSource(train=f"{directory}/{pattern}")
        check_token_files(palm_task("palm_of_tokens", source, vocabulary_of(cached)), "train")

    check("train.tfrecord-*")
    check(first.name)  # a part of a complete cache, on purpose
    second.unlink()
    with pytest.raises(PlugError, match=f"1 of the 2 files of the cache .* missing: {second}"):
        check("train.tfrecord-*")
    info.unlink()
    with pytest.raises(PlugError, match="'train' in .*two_files is not finished"):
        check("train.tfrecord-*")


def test_a_cache_of_another_vocabulary_is_refused(cached, source):
    register(source, vocabulary_of(cached, more=["xyz"]))
    with pytest.raises(PlugError, match="was made with another vocabulary than the task has now"):
        make_iterator(config_of(NAMES[1], cached))


def test_what_goes_with_a_place_in_a_cache(cached, source):
    """The cache's files and settings, not the text."""
    task = register(source, vocabulary_of(cached))[0]
    config = config_of(task.name, cached)
    seqio.add_global_cache_dirs([str(cached)])
    names = list(task.output_features)
    then = stream_settings(config, task, names)
    shard = cached / task.name / "train.tfrecord-00000-of-00001"
    assert then["files"] == [f"{shard} ({shard.stat().st_size:,} bytes)"]
    text = dataclasses.replace(config, use_cached=False)
    from_text = changes(then, stream_settings(text, task, names))
    assert from_text[0] == "use_cached: true then, false now"
    made_by = cached / task.name / "fingerprint.train.json"
    kept = made_by.read_text()
    try:
        made_by.write_text(json.dumps({**json.loads(kept), "deduplication": "exact"}))
        (said,) = changes(then, stream_settings(config, task, names))
    finally:
        made_by.write_text(kept)
    assert said.startswith("cache: ")
    assert changes(then, stream_settings(config, task, names)) == []


def test_a_cache_in_a_directory_of_any_name(cached, source, tmp_path, monkeypatch):
    odd = tmp_path / "lr=[1e-4]*"
    shutil.copytree(cached, odd)
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(odd)])
    task = register(source, vocabulary_of(cached))[0]
    shard = str(odd / task.name / "train.tfrecord-00000-of-00001")
    for one in (task, task.padded):
        assert one._get_cached_source("train").list_shards("train") == [shard]
    check_cache(task, "train")
    # Not one of our tasks: seqio's own glob finds nothing.
    other = seqio.Task(
        task.name,
        source=source,
        preprocessors=task.preprocessors,
        output_features=task.output_features,
    )
    with pytest.raises(PlugError, match=r"lr=\[1e-4\].* for a pattern.*; rename"):
        check_cache(other, "train")


def test_a_split_that_was_not_cached(cached, source):
    """Only train was; or its cache was interrupted before its last shard."""
    register(source, vocabulary_of(cached))
    config = dataclasses.replace(config_of(NAMES[1], cached), split="validation", num_epochs=1)
    for read in (make_iterator, check_files):
        with pytest.raises(PlugError, match="no complete cache of the validation split .*--splits"):
            read(config)


def test_a_damaged_shard_is_found_first_or_when_it_is_reached(cached, source):
    register(source, vocabulary_of(cached))
    config = config_of(NAMES[0], cached)
    check_files(config)
    [shard] = cached.glob(f"{NAMES[0]}/train.tfrecord-*")
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-3])
        with pytest.raises(PlugError, match=f"1 of the files .* are damaged: {shard} is cut short"):
            check_files(config)
        with pytest.raises(PlugError, match="the data can no longer be read: .*record"):
            for _ in make_iterator(config):
                pass
        shard.unlink()
        with pytest.raises(PlugError, match=f"are missing or cannot be read: {shard}"):
            check_files(config)
    finally:
        shard.write_bytes(content)
