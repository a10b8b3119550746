from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from plug_jax.data.drops import count_changes, count_drops, reset_counts
from plug_jax.data.features import PALM, STRUCTBERT, output_features
from plug_jax.data.pipeline.batches import rows_of_process
from plug_jax.data.pipeline.packing import unpack_examples
from plug_jax.data.pipeline.pipeline import (
    DatasetConfig,
    _batches,
    _Rows,
    make_iterator,
    vocabulary_of,
)
from plug_jax.errors import PlugError

VOCABULARY = seqio.PassThroughVocabulary(1000)


@seqio.map_over_dataset(num_seeds=1)
def to_features(line, seed, output_features):
    """A line "id length" as an example whose tokens are the id and whose weights are random."""
    numbers = tf.strings.to_number(tf.strings.split(line["text"]), tf.int32)
    draws = tf.random.stateless_uniform([numbers[1]], seed, 0, 2, tf.int32)
    return {
        name: draws if name.endswith("weights") else tf.fill([numbers[1]], numbers[0])
        for name in output_features
    }


def as_text(dataset):
    return dataset.map(lambda text: {"text": text})


def drop_all(dataset):
    def drop(line):
        return count_drops(tf.strings.length(line["text"]) < 0, {"not_liked": 1})

    return dataset.filter(drop)


def lines_of(ids, longest=8):
    """Lines "id length", with ids from 1."""
    lengths = np.random.default_rng(0).integers(1, longest + 1, 1000)
    return [f"{i} {lengths[i]}" for i in ids]


@pytest.fixture
def add_task(request):
    """Register a stage-1 task, or one with other features, until the end of the test."""
    names = itertools.count()

    def add(source, *, preprocessors=(as_text, to_features), features=STRUCTBERT, **kwargs):
        name = f"{request.node.name.split('[')[0]}_{next(names)}"
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=list(preprocessors),
            output_features=output_features(features, VOCABULARY),
            **kwargs,
        )
        request.addfinalizer(lambda: seqio.TaskRegistry.remove(name))
        return name

    return add


def function_source(lines, splits=("train",)):
    def read(split, shuffle_files, seed=None):
        del split
        dataset = tf.data.Dataset.from_tensor_slices(lines)
        return dataset.shuffle(len(lines), seed=seed) if shuffle_files else dataset

    return seqio.FunctionDataSource(read, splits=splits)


def file_source(directory, lines, files):
    for file in range(files):
        (directory / f"{file}.txt").write_text("\n".join(lines[file::files]) + "\n")
    return seqio.TextLineDataSource({"train": str(directory / "*.txt")})


def config_of(name, **changes):
    config = DatasetConfig(
        mixture_or_task_name=name,
        feature_lengths={"encoder": 16},
        split="train",
        batch_size=4,
        shuffle=False,
        seed=3,
        packing_window=8,
    )
    return dataclasses.replace(config, **changes)


def ids_of(batch):
    return [int(example["encoder_input_tokens"][0]) for example in unpack_examples(batch)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("pack", [True, False])
def test_one_epoch_gives_every_example_once_and_fills_up_with_empty_rows(add_task, pack):
    name = add_task(function_source(lines_of(range(1, 51))))
    batches = list(make_iterator(config_of(name, num_epochs=1, pack=pack)))
    assert {rows.shape for batch in batches for rows in batch.values()} == {(4, 16)}
    assert sorted(i for batch in batches for i in ids_of(batch)) == list(range(1, 51))
    rows = np.concatenate([batch["encoder_segment_ids"] for batch in batches])
    empty = ~rows.any(axis=1)
    assert 0 < empty.sum() < 4 and not empty[: -empty.sum()].any()
    assert rows.max() == 1 or pack


def test_finite_processes_split_the_batches_of_one(add_task):
    name = add_task(function_source(lines_of(range(1, 30))))
    config = config_of(name, num_epochs=1, shuffle=True)
    whole = list(make_iterator(config))
    parts = [list(make_iterator(config, process_index=i, process_count=2)) for i in range(2)]
    joined = [
        {key: np.concatenate([first[key], second[key]]) for key in first}
        for first, second in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


def first_epoch(name, process, *, shuffle, examples):
    """Ids and weights of this process's examples in one epoch."""
    config = config_of(name, pack=False, shuffle=shuffle)
    found = []
    for batch in make_iterator(config, process_index=process, process_count=2):
        found += unpack_examples(batch)
        if len(found) >= examples:
            return found[:examples]


@pytest.mark.parametrize("files", [1, 4])
def test_training_processes_share_files_or_examples(add_task, tmp_path, files):
    lines = [f"{i} 8" for i in range(1, 41)]
    name = add_task(file_source(tmp_path, lines, files))
    parts = [first_epoch(name, process, shuffle=False, examples=20) for process in range(2)]
    ids = [[int(example["encoder_input_tokens"][0]) for example in part] for part in parts]
    assert sorted(ids[0] + ids[1]) == list(range(1, 41))
    draws = [np.stack([example["encoder_loss_weights"] for example in part]) for part in parts]
    # Processes that read their own files draw their own masks.
    assert (draws[0] != draws[1]).any() == (files > 1)


def test_training_processes_that_share_examples_shuffle_alike(add_task):
    source = function_source([f"{i} 8" for i in range(1, 41)])
    name = add_task(source, shuffle_buffer_size=1)  # Only the source shuffles.
    parts = [first_epoch(name, process, shuffle=True, examples=20) for process in range(2)]
    ids = [int(example["encoder_input_tokens"][0]) for part in parts for example in part]
    assert sorted(ids) == list(range(1, 41))
    assert ids[:20] != list(range(1, 41, 2))


def test_epochs_draw_anew_and_seeds_repeat(add_task):
    name = add_task(function_source([f"{i} 16" for i in range(1, 9)]))

    def read(seed):
        return list(itertools.islice(make_iterator(config_of(name, pack=False, seed=seed)), 4))

    batches = read(seed=3)
    first, second = (
        {key: np.concatenate([batch[key] for batch in epoch]) for key in batches[0]}
        for epoch in (batches[:2], batches[2:])
    )
    np.testing.assert_array_equal(first["encoder_input_tokens"], second["encoder_input_tokens"])
    changed = first["encoder_loss_weights"] != second["encoder_loss_weights"]
    assert changed.any(axis=1).all()
    assert_same(batches, read(seed=3))
    assert (read(seed=4)[0]["encoder_loss_weights"] != batches[0]["encoder_loss_weights"]).any()


def read_processes(config, count, batches, *, restore=None, save=None):
    """The rows that `count` processes read together, as single batches."""
    iterators = [make_iterator(config, process_index=i, process_count=count) for i in range(count)]
    parts = []
    for iterator in iterators:
        if restore is not None:
            iterator.restore(restore)
        parts.append(list(itertools.islice(iterator, batches)))
        if save is not None:
            iterator.save(save)
    return [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]


@pytest.fixture
def streams_config(add_task, tmp_path):
    """Four streams of two files each, shuffled and packed."""
    (tmp_path / "text").mkdir()
    name = add_task(file_source(tmp_path / "text", lines_of(range(1, 400)), 8))
    return config_of(name, batch_size=8, shuffle=True, packing_window=16, streams=4)


@pytest.mark.long  # the next test's case that is not long has 1, 2 and 8
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_number_of_processes_does_not_change_the_batches(streams_config, count):
    assert_same(read_processes(streams_config, count, 5), read_processes(streams_config, 1, 5))


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 8), *(pytest.param(*n, marks=pytest.mark.long) for n in ((1, 1), (4, 2), (4, 4), (8, 1)))],
)
def test_restored_by_another_number_of_processes_it_goes_on_exactly(
    streams_config, tmp_path, before, after
):
    expected = read_processes(streams_config, 1, 30)
    first = read_processes(streams_config, before, 7, save=tmp_path / "data")
    files = sorted(path.name for path in (tmp_path / "data").glob("*.index"))
    assert files == [f"stream_{i:05d}-of-00004.index" for i in range(4)]
    # A run that does not set its streams keeps its first setting.
    config = dataclasses.replace(streams_config, streams=None)
    then = read_processes(config, after, 23, restore=tmp_path / "data")
    assert_same(first + then, expected)


def test_every_epoch_of_all_streams_is_the_whole_data_once(streams_config):
    # A buffer that shuffles examples mixes the end of an epoch with the start of the next.
    config = dataclasses.replace(streams_config, pack=False, shuffle=False)
    for count in (1, 4):
        # 399 examples, of which each stream reads about a hundred an epoch.
        batches = read_processes(config, count, 60)
        for stream in range(4):
            rows = [
                ids_of({k: v[stream * 2 : stream * 2 + 2] for k, v in b.items()}) for b in batches
            ]
            seen = list(itertools.chain.from_iterable(rows))
            own = len({i for i in seen})
            assert sorted(seen[:own]) == sorted(set(seen)) and 90 <= own <= 110
        everything = {i for batch in batches for i in ids_of(batch)}
        assert everything == set(range(1, 400))


def test_threads_do_not_change_the_batches(streams_config):
    def read(threads):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.enabled = threads > 1
        rows = _Rows.of(streams_config, None)
        stream = _batches(streams_config, rows, seqio.ShardInfo(1, 4)).with_options(options)
        return list(stream.take(20).as_numpy_iterator())

    assert_same(read(1), read(7))


def test_restoring_at_the_end_of_an_epoch(add_task, tmp_path):
    name = add_task(function_source(lines_of(range(1, 20))))
    iterator = make_iterator(config_of(name, num_epochs=1))
    assert list(iterator)
    iterator.save(tmp_path)
    restored = make_iterator(config_of(name, num_epochs=1))
    restored.restore(tmp_path)
    assert list(restored) == []


def test_unusable_positions(add_task, tmp_path):
    name = add_task(function_source(lines_of(range(1, 20))))
    with pytest.raises(PlugError, match="holds no data position"):
        make_iterator(config_of(name)).restore(tmp_path / "nowhere")
    iterator = make_iterator(config_of(name))
    iterator.save(tmp_path)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(PlugError, match="cannot be restored"):
        iterator.restore(tmp_path)


def test_places_in_a_directory_of_any_name(add_task, tmp_path):
    name = add_task(function_source(lines_of(range(1, 90))))
    directory = tmp_path / "lr=[1e-4] *?{天}\n100%#back\\slash"
    iterator = make_iterator(config_of(name))
    next(iterator)
    iterator.save(directory)
    expected = next(iterator)
    restored = make_iterator(config_of(name))
    restored.restore(directory)
    assert_same([next(restored)], [expected])
    for path in directory.glob("*.data-*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PlugError, match="cannot be restored"):
        restored.restore(directory)


def test_palm_tasks_get_decoder_rows(add_task):
    name = add_task(function_source(lines_of(range(1, 30))), features=PALM)
    config = config_of(name, feature_lengths={"encoder": 16, "decoder": 12}, num_epochs=1)
    batches = list(make_iterator(config))
    assert {batch["decoder_segment_ids"].shape for batch in batches} == {(4, 12)}
    for example in (example for batch in batches for example in unpack_examples(batch)):
        np.testing.assert_array_equal(
            example["decoder_target_tokens"], example["encoder_input_tokens"]
        )
    assert sorted(i for batch in batches for i in ids_of(batch)) == list(range(1, 30))


def test_finite_mixture_reads_each_task_to_its_end(add_task):
    names = [
        add_task(function_source(lines_of(range(1, 6)))),
        add_task(function_source(lines_of(range(6, 40)))),
    ]
    seqio.MixtureRegistry.add("mixture_of_two", [(names[0], 1.0), (names[1], 1.0)])
    try:
        batches = list(make_iterator(config_of("mixture_of_two", num_epochs=1)))
        assert sorted(i for batch in batches for i in ids_of(batch)) == list(range(1, 40))
    finally:
        seqio.MixtureRegistry.remove("mixture_of_two")


@pytest.mark.parametrize("num_epochs", [None, 1])
def test_task_that_drops_everything(add_task, num_epochs):
    """Would loop forever in training, as repetition comes before the preprocessors that drop."""
    reset_counts()
    source = function_source(lines_of(range(1, 12)))
    name = add_task(source, preprocessors=(as_text, drop_all, to_features))
    with pytest.raises(PlugError, match=f"{name}.*no example in split 'train'.*not_liked 11"):
        next(make_iterator(config_of(name, num_epochs=num_epochs)))


def test_process_without_examples(add_task):
    reset_counts()
    name = add_task(function_source(lines_of([1])))
    with pytest.raises(PlugError, match="for data stream 1 of 2.*its source is empty"):
        next(make_iterator(config_of(name), process_index=1, process_count=2))


def test_too_long_example(add_task):
    name = add_task(function_source(["1 8", "2 17", "3 8"]))
    message = "^An example has 17 encoder tokens, but a row holds 16: raise the encoder feature"
    with pytest.raises(PlugError, match=message):
        list(make_iterator(config_of(name, num_epochs=1)))


def test_a_place_in_other_data_is_refused(streams_config, tmp_path):
    """Before anything is read: each setting with both values, and what to do."""
    read_processes(streams_config, 2, 3, save=tmp_path / "data")
    settings = json.loads((tmp_path / "data" / "settings.json").read_text())
    assert settings["batch_size"] == 8 and settings["streams"] == 4
    for change, said in (
        ({"batch_size": 4}, "batch_size: 8 then, 4 now"),
        ({"batch_size": 16}, "batch_size: 8 then, 16 now"),
        ({"streams": 2}, "streams: 4 then, 2 now"),
        ({"seed": 4, "streams": None}, "seed: 3 then, 4 now"),
    ):
        iterator = make_iterator(dataclasses.replace(streams_config, **change))
        assert iterator.changes_since(tmp_path / "data") == [said]
        with pytest.raises(PlugError, match=f"data is a position in other .*:\n  {said}\nContinue"):
            iterator.restore(tmp_path / "data")


@pytest.mark.slow
def test_a_place_of_a_version_that_kept_no_settings(streams_config, tmp_path):
    expected = read_processes(streams_config, 1, 5)
    first = read_processes(streams_config, 1, 3, save=tmp_path / "data")
    (tmp_path / "data" / "settings.json").unlink()
    for counts in (tmp_path / "data").glob("*.counts.json"):
        counts.unlink()
    iterator = make_iterator(streams_config)
    assert iterator.changes_since(tmp_path / "data") is None
    iterator.restore(tmp_path / "data")
    assert_same([*first, *itertools.islice(iterator, 2)], expected)


def test_files_are_those_that_are_read_and_not_those_that_came_later(streams_config, tmp_path):
    iterator = make_iterator(streams_config)
    next(iterator)
    with (tmp_path / "text" / "0.txt").open("a") as file:
        file.write("400 3\n")
    iterator.save(tmp_path / "data")
    (said,) = make_iterator(streams_config).changes_since(tmp_path / "data")
    assert re.fullmatch(r"files: .*/0.txt \(\d+ bytes\) then, .*/0.txt \(\d+ bytes\) now", said)


def drop_some(dataset):
    """Drop every third line, and change every fourth."""

    def keep(line):
        number = tf.strings.to_number(tf.strings.split(line["text"])[0], tf.int32)
        number = count_changes(number, {"seen": tf.cast(number % 4 == 0, tf.int32)})
        return count_drops(number % 3 > 0, {"third": tf.cast(number % 3 == 0, tf.int32)})

    return dataset.filter(keep)


@pytest.fixture
def dropping(add_task, tmp_path):
    """Two streams of two files each, without shuffling: lines 1 to 400, each once per epoch."""
    (tmp_path / "text").mkdir()
    source = file_source(tmp_path / "text", lines_of(range(1, 401)), 4)
    name = add_task(source, preprocessors=(as_text, drop_some, to_features))
    return config_of(name, batch_size=8, streams=2)


def total_counts(iterators):
    total = collections.Counter()
    for iterator in iterators:
        for counts in iterator.counts().values():
            total.update(counts)
    return dict(total)


def test_counts_belong_to_a_place(dropping, tmp_path):
    """A run that is killed after each checkpoint and resumed counts every line once."""
    config = dataclasses.replace(dropping, num_epochs=1, streams=None, pack=False)
    directory, saved, counts = None, None, []
    for saves in itertools.count():
        iterator = make_iterator(config)
        if directory is not None:
            iterator.restore(directory)
            assert iterator.counts() == saved
        batches = len(list(itertools.islice(iterator, 9)))
        directory = tmp_path / f"data{saves}"
        iterator.save(directory)
        saved = iterator.counts()
        counts.append(saved["dropped"]["third"])
        if not batches:
            break
        list(itertools.islice(iterator, 3))  # read again after the kill
    assert saves > 2 and counts == sorted(counts)
    assert saved == {"dropped": {"third": 133}, "changed": {"seen": 100}}


@pytest.mark.slow
def test_counts_of_all_processes(dropping, tmp_path):
    """A stream that several processes read is counted once, also by the process that resumes it."""
    four = [make_iterator(dropping, process_index=i, process_count=4) for i in range(4)]
    for iterator in four:
        list(itertools.islice(iterator, 5))
        iterator.save(tmp_path / "data")
    kept = [json.loads(p.read_text()) for p in (tmp_path / "data").glob("*.counts.json")]
    total = total_counts(four)
    assert total["third"] == sum(counts["dropped"]["third"] for counts in kept) > 20
    assert [iterator.counts() != {} for iterator in four] == [True, False, True, False]
    pair = [make_iterator(dropping, process_index=i, process_count=4) for i in (2, 3)]
    alone, after = make_iterator(dropping), make_iterator(dropping)
    for iterator in (*pair, alone):
        iterator.restore(tmp_path / "data")
    assert total_counts([alone]) == total
    assert total_counts(pair) == total_counts(four[2:])
    # After a change of data, counting continues.
    after.start_after(tmp_path / "data")
    assert total_counts([after]) == total
    next(after)
    after.save(tmp_path / "later")
    assert total_counts([after])["third"] > total["third"]


def test_other_data_are_counted_apart(dropping, tmp_path):
    iterator = make_iterator(dropping)
    next(iterator)
    list(make_iterator(dataclasses.replace(dropping, num_epochs=1)))
    iterator.save(tmp_path)
    assert iterator.counts()["dropped"]["third"] < 133


PROGRAM_THAT_READS_AHEAD = """
import time
import numpy as np
import seqio
import tensorflow as tf
from plug_jax.data.features import STRUCTBERT, output_features
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator

def to_features(dataset, output_features):
    def slow_but_for_the_first(number):
        time.sleep(0.5 if number else 0)
        return np.array([1], np.int32)

    def features(number):
        value = tf.numpy_function(slow_but_for_the_first, [number], tf.int32, stateful=False)
        value.set_shape([None])
        return {name: value for name in output_features}

    return dataset.map(features, num_parallel_calls=2)

seqio.TaskRegistry.add(
    "slow",
    source=seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.range(9), splits=["train"]
    ),
    preprocessors=[to_features],
    output_features=output_features(STRUCTBERT, seqio.PassThroughVocabulary(9)),
)
config = DatasetConfig("slow", {"encoder": 4}, "train", 1, False, 0, packing_window=1)
batches = make_iterator(config)
next(batches)
"""


def test_a_program_ends_while_its_data_are_read_ahead():
    subprocess.run([sys.executable, "-c", PROGRAM_THAT_READS_AHEAD], check=True, timeout=180)


def test_unknown_names(add_task):
    name = add_task(function_source(lines_of(range(1, 3)), splits=("train", "validation")))
    with pytest.raises(PlugError, match=f"Did you mean .*{name}"):
        make_iterator(config_of(name + "x"))
    with pytest.raises(PlugError, match="'test', only train, validation"):
        make_iterator(config_of(name, split="test"))


def test_features_that_fit_no_converter(add_task):
    without_types = [one for one in STRUCTBERT if one.name != "encoder_token_types"]
    name = add_task(function_source(["1 1"]), features=without_types)
    with pytest.raises(PlugError, match=r"lacks the output features encoder_token_types"):
        make_iterator(config_of(name), STRUCTBERT)
    name = add_task(function_source(["1 1"]))
    with pytest.raises(PlugError, match="need lengths for encoder"):
        make_iterator(config_of(name, feature_lengths={"encoder": 8, "decoder": 8}))


def test_missing_cache(add_task):
    source = function_source(["1 1"])
    steps = (as_text, seqio.CacheDatasetPlaceholder(), to_features)
    with pytest.raises(PlugError, match="not cached"):
        make_iterator(config_of(add_task(source, preprocessors=steps), use_cached=True))


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"num_epochs": 0}, {"packing_window": 0}])
def test_numbers_below_one(changes):
    with pytest.raises(PlugError, match=f"{next(iter(changes))}.* at least 1, not 0"):
        config_of("any", **changes)


def test_rows_streams_and_processes_must_divide(add_task, tmp_path):
    name = add_task(function_source(lines_of(range(1, 200))))
    with pytest.raises(PlugError, match="4 rows cannot be split evenly over 3 data streams and 3"):
        make_iterator(config_of(name), process_count=3)
    config = config_of(name, batch_size=12, streams=4)
    with pytest.raises(PlugError, match="4 data streams cannot be shared by 6 processes"):
        make_iterator(config, process_count=6)
    iterator = make_iterator(config)
    next(iterator)
    iterator.save(tmp_path)
    unlike = make_iterator(config_of(name, batch_size=12), process_count=3)
    with pytest.raises(PlugError, match="4 data streams cannot be shared by 3 processes"):
        unlike.restore(tmp_path)


def test_the_rows_of_a_process():
    def rows(index, count):
        found = rows_of_process(batch_size=8, streams=4, process_index=index, process_count=count)
        return [(stream, part.start, part.stop) for stream, part in found]

    assert rows(1, 2) == [(2, 0, 2), (3, 0, 2)]
    assert rows(4, 8) == [(2, 0, 1)]
    assert rows(5, 8) == [(2, 1, 2)]
    assert rows(0, 1) == [(stream, 0, 2) for stream in range(4)]


def test_vocabulary_of_a_task(add_task):
    assert vocabulary_of(add_task(function_source(["1 1"]))) is VOCABULARY
    with pytest.raises(PlugError, match="No task or mixture is called 'nothing'"):
        vocabulary_of("nothing")
