"""Caches of a small task: what seqio reads from them, repeated runs, and refusals."""

import json
import os
import shutil

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.caching import run as caching
from plug_jax.data.caching.deduplication import Deduplication
from plug_jax.data.caching.files import LENGTH_EDGES, check_cache, merge_statistics
from plug_jax.data.drops import drop_counts, reset_counts
from plug_jax.data.preprocessors.documents import batch_documents
from plug_jax.data.sources.text_source import TextSource
from plug_jax.data.sources.tfds_source import TfdsSource
from plug_jax.errors import PlugError
from plug_jax.file_locks import alone
from tests.cached_corpus import (
    FILES,
    cache,
    digests,
    random_text,
    shard_files,
    statistics_of,
    task_of,
    vocabulary_of,
    write_corpus,
)
from tests.tfds_data import build_tfds


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A task over 3 files of 40, 41 and 42 documents, some too short, and its cache."""
    directory = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    documents = [[random_text(rng) for _ in range(40 + file)] for file in range(FILES)]
    task = task_of(write_corpus(directory / "corpus", documents), vocabulary_of(directory))
    cache(task, directory / "caches")
    return task, directory


@pytest.fixture
def small(made):
    return made[0].replace()  # seqio stores the cache's location in the task


@pytest.fixture
def caches(made, tmp_path):
    """A directory with a copy of the cache."""
    shutil.copytree(made[1] / "caches", tmp_path / "caches")
    return tmp_path / "caches"


@pytest.fixture
def no_cache_dirs():
    before = list(seqio.utils.get_global_cache_dirs())
    yield
    seqio.utils.set_global_cache_dirs(before)


def test_seqio_reads_what_it_would_have_made(small, caches, no_cache_dirs):
    seqio.utils.set_global_cache_dirs([str(caches)])
    for index in (0, 2):
        fresh, cached = (
            small.get_dataset(
                split="train",
                shuffle=False,
                seed=5,
                shard_info=seqio.ShardInfo(index, FILES),
                use_cached=use_cached,
                trim_output_features=False,
            )
            for use_cached in (False, True)
        )
        assert cached.element_spec == fresh.element_spec
        fresh, cached = list(fresh.as_numpy_iterator()), list(cached.as_numpy_iterator())
        assert len(fresh) == len(cached) > 1
        for one, other in zip(fresh, cached, strict=True):
            np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert small.get_cached_stats("train")["examples"] == 3 * FILES
    check_cache(small, "train")


def test_statistics_add_up(made, caches):
    statistics = statistics_of(caches)
    lines = [p.read_text(encoding="utf-8").splitlines() for p in made[1].glob("corpus/*.txt")]
    documents = [line for file in lines for line in file]
    assert statistics["documents"] == len(documents) == 40 + 41 + 42
    lengths = [len(line) for line in documents if len(line) >= 10]
    assert statistics["documents_used"] == len(lengths) < len(documents)
    assert statistics["drops"] == {"too_short_text": len(documents) - len(lengths)}
    assert statistics["tokens"] == sum(lengths)
    assert statistics["sentences"] == len(lengths)
    histogram = np.histogram(lengths, [*LENGTH_EDGES, np.inf])[0]
    assert statistics["document_length_histogram"]["counts"] == histogram.tolist()
    assert statistics["document_length_histogram"]["edges"] == list(LENGTH_EDGES)
    assert statistics["examples"] == 9


def test_merged_statistics_as_in_the_docstring():
    parts = [
        {"examples": 1, "tokens": 7, "drops": {"a": 1}},
        {"examples": 2, "tokens": 5, "drops": {"a": 2, "b": 1}},
    ]
    assert merge_statistics(parts) == {"examples": 3, "tokens": 12, "drops": {"a": 3, "b": 1}}


def test_counts_and_progress_by_shard(small, tmp_path):
    """Progress counts only this process's work: not earlier runs, nor what other shards drop."""
    reset_counts()
    seen = []
    cache(small, tmp_path / "a", report=seen.append)
    dropped = drop_counts()["too_short_text"]
    shards = [
        json.loads(path.read_text())["statistics"]
        for path in sorted((tmp_path / "a" / "small" / "shards.train").glob("*.json"))
    ]
    assert [shard["documents"] for shard in shards] == [40, 41, 42]
    assert sum(shard["drops"].get("too_short_text", 0) for shard in shards) == dropped > 0
    assert seen[0].shards_done == 0
    last = seen[-1]
    assert (last.split, last.step, last.shards_done, last.shards) == ("train", "writing", 3, 3)
    assert last.documents == 123


# --- a second run


def test_a_second_run_writes_what_is_missing(small, caches):
    before = digests(caches)
    files = shard_files(caches)
    for file in files:
        os.utime(file, (1, 1))
    work = caches / "small" / "shards.train"
    (caches / "small" / "COMPLETED").unlink()
    files[1].unlink()
    (work / "00001.tmp-dead").write_bytes(b"half a rec")
    [split] = cache(small, caches)
    assert split.shards_written == 1
    assert digests(caches) == before
    assert [file.stat().st_mtime == 1 for file in files] == [True, False, True]
    assert sorted(path.name for path in work.iterdir()) == [f"0000{i}.json" for i in range(FILES)]
    assert (caches / "small" / "COMPLETED").exists()


def test_a_shard_that_was_cut_off_is_written_again(small, caches):
    before = digests(caches)
    file = shard_files(caches)[2]
    file.write_bytes(file.read_bytes()[:-7])
    [split] = cache(small, caches)
    assert split.shards_written == 1
    assert digests(caches) == before


def test_a_complete_cache_is_left_alone(small, caches):
    files = [*shard_files(caches)]
    times = [file.stat().st_mtime_ns for file in files]
    [split] = cache(small, caches)
    assert split.shards_written == 0
    assert split.statistics == statistics_of(caches)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_what_is_finished_before_an_error_is_kept(small, tmp_path, monkeypatch):
    def fails_at_2(work, index):
        if index == 2:
            raise PlugError("file 2 is bad; mend it")
        real(work, index)

    real = caching.write_shard
    monkeypatch.setattr(caching, "write_shard", fails_at_2)
    with pytest.raises(PlugError, match="^file 2 is bad; mend it$"):
        cache(small, tmp_path)
    assert not (tmp_path / "small" / "COMPLETED").exists()
    assert not (tmp_path / "small" / "info.train.json").exists()
    monkeypatch.undo()
    [split] = cache(small, tmp_path)
    assert split.shards_written == 1


def test_an_interruption_is_one(small, tmp_path, monkeypatch):
    def interrupted(work, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(caching, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache(small, tmp_path)


def test_splits_can_follow_one_another(small, caches):
    [split] = cache(small, caches, splits=["validation"])
    assert split.shards_written == 1
    assert statistics_of(caches, "validation")["documents"] == 40
    assert statistics_of(caches, "train")["documents"] == 123
    assert (caches / "small" / "COMPLETED").exists()


# --- refusals


def test_another_vocabulary_is_refused(small, caches, no_cache_dirs):
    other = task_of(small.source, vocabulary_of(caches, more=["龘"]))
    with pytest.raises(PlugError, match="made with another vocabulary; .*--overwrite"):
        cache(other, caches)
    seqio.utils.set_global_cache_dirs([str(caches)])
    with pytest.raises(PlugError, match="made with another vocabulary than the task has now"):
        check_cache(other, "train")
    [split] = cache(other, caches, overwrite=True)
    assert split.shards_written == FILES
    check_cache(other, "train")


def test_the_place_of_the_vocabulary_does_not_matter(small, caches, no_cache_dirs):
    (caches / "elsewhere").mkdir()
    moved = task_of(small.source, vocabulary_of(caches / "elsewhere"))
    seqio.utils.set_global_cache_dirs([str(caches)])
    check_cache(moved, "train")
    assert cache(moved, caches)[0].shards_written == 0


def test_other_settings_are_refused(small, caches, no_cache_dirs):
    vocabulary = small.output_features["tokens"].vocabulary
    cleaned = task_of(small.source, vocabulary, shortest=11)
    with pytest.raises(PlugError, match="made with other preprocessing;"):
        cache(cleaned, caches)
    with pytest.raises(PlugError, match="made with other deduplication;"):
        cache(small, caches, deduplicate=Deduplication())
    longer = write_corpus(caches / "corpus", [["天" * 20]] * FILES)
    with pytest.raises(PlugError, match="made with other source files;"):
        cache(task_of(longer, vocabulary), caches)
    seqio.utils.set_global_cache_dirs([str(caches)])
    with pytest.raises(PlugError, match="other preprocessing than the task has now"):
        check_cache(cleaned, "train")
    check_cache(small, "train")  # the files may be gone when the cache is used


def test_another_slice_or_text_feature_of_a_dataset_is_refused(made, tmp_path):
    """Their files can be the same."""
    name = "news/zh:1.0.0"
    texts = ["一丁丂七丄" * 3, "一丁丂七丄" * 4]
    build_tfds(tmp_path, name, {"train": texts})

    def cached(split="train", **options):
        source = TfdsSource(name, splits={"train": split}, data_dir=str(tmp_path), **options)
        [done] = cache(task_of(source, vocabulary_of(made[1])), tmp_path / "caches")
        return done.shards_written

    assert cached() == 1
    for changed in ({"split": "train[:50%]"}, {"text_feature": "wikidata_id"}):
        with pytest.raises(PlugError, match="with another slice or text feature of the TFDS data"):
            cached(**changed)
    path = tmp_path / "caches" / "small" / "fingerprint.train.json"
    older = json.loads(path.read_text())
    del older["dataset"]
    path.write_text(json.dumps(older))
    assert cached() == 0  # as an older version made it, which stays: checkpoints have its digest
    assert json.loads(path.read_text()) == older


def test_a_cache_of_somebody_else_is_refused(small, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "info.train.json").write_text("{}")
    with pytest.raises(PlugError, match="that plug-jax did not make"):
        cache(small, tmp_path)


def test_tasks_that_cannot_be_cached(small, tmp_path):
    stages = [s for s in small.preprocessors if not isinstance(s, seqio.CacheDatasetPlaceholder)]
    with pytest.raises(PlugError, match="put seqio.CacheDatasetPlaceholder"):
        cache(small.replace(preprocessors=stages), tmp_path)
    with pytest.raises(PlugError, match="no split 'test', only train, validation"):
        cache(small, tmp_path, splits=["test"])
    stages = [batch_documents, seqio.CacheDatasetPlaceholder()]
    with pytest.raises(
        PlugError, match="before plug_jax.data.preprocessors.documents.tokenize_documents"
    ):
        cache(small.replace(preprocessors=stages), tmp_path, deduplicate=Deduplication())


def test_a_directory_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlugError, match="cannot be written"):
        cache(small, tmp_path / "file")


def test_nothing_left(tmp_path, small):
    task = task_of(small.source, vocabulary_of(tmp_path), shortest=1000)
    with pytest.raises(PlugError, match="Nothing is left.*too_short_text 40"):
        cache(task, tmp_path, splits=["validation"])


def raise_in_the_graph(dataset):
    def check(document):
        def fail(text):
            raise PlugError(f"{len(text)} bytes are too many: shorten it")

        return {"text": tf.ensure_shape(tf.numpy_function(fail, [document["text"]], tf.string), [])}

    return batch_documents(dataset.map(check))


def test_an_error_of_the_source_comes_out_as_it_is(small, tmp_path):
    vocabulary = small.output_features["tokens"].vocabulary
    task = task_of(small.source, vocabulary, first=raise_in_the_graph)
    with pytest.raises(PlugError, match=r"^\d+ bytes are too many: shorten it$"):
        cache(task, tmp_path)


def test_a_file_that_cannot_be_read_is_found_first(made, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.txt").write_text("天地人\n" * 20, encoding="utf-8")
    (tmp_path / "corpus" / "1.txt").symlink_to(tmp_path / "gone.txt")
    task = task_of(TextSource(train=f"{tmp_path}/corpus/*.txt"), vocabulary_of(made[1]))
    with pytest.raises(PlugError, match=r"1 of the files of the train split of 'small'.*/1\.txt"):
        cache(task, tmp_path / "caches")
    assert not shard_files(tmp_path / "caches")


def test_an_option_that_nobody_has(small, tmp_path):
    with pytest.raises(PlugError, match="has an option --split"):
        cache(small, tmp_path, beam_options=["--split=train"])


# --- sources of other kinds


def test_a_function_source_and_records_of_another_kind(tmp_path, no_cache_dirs):
    def read(split, shuffle_files):
        numbers = tf.data.Dataset.range(5)
        return numbers.map(lambda n: {"x": tf.range(n), "y": tf.cast(n, tf.float32) / 3})

    task = seqio.Task(
        "numbers",
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[lambda dataset: dataset, seqio.CacheDatasetPlaceholder()],
        output_features={"x": seqio.Feature(seqio.PassThroughVocabulary(9), dtype=tf.int64)},
    )
    cache(task, tmp_path)
    seqio.utils.set_global_cache_dirs([str(tmp_path)])
    examples = task.get_dataset(split="train", shuffle=False, use_cached=True)
    for n, example in enumerate(examples.as_numpy_iterator()):
        np.testing.assert_array_equal(example["x"], np.arange(n))
        assert example["y"] == np.float32(n) / np.float32(3)
    assert n == 4
    assert statistics_of(tmp_path, name="numbers") == {"examples": 5, "drops": {}, "changes": {}}


def test_one_run_at_a_time(small, caches):
    """The second would remove what the first has not finished."""
    before = digests(caches)
    unfinished = caches / "small" / "shards.train" / "00000.tmp"
    unfinished.touch()
    lock = caches / "small" / "cache.lock"
    with alone(lock, ""), pytest.raises(PlugError, match="another run is caching into .*process"):
        cache(small, caches, overwrite=True)
    assert unfinished.exists()
    unfinished.unlink()
    assert digests(caches) == before
    cache(small, caches, overwrite=True)
    assert not lock.exists()
