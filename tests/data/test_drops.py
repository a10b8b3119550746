"""Drop counts are exact, whatever graph optimisations TensorFlow applies."""

import gc
import threading

import numpy as np
import pytest
import tensorflow as tf

from plug_jax.data.drops import count_drops, drop_counts, reset_counts


@pytest.fixture(autouse=True)
def no_counts():
    reset_counts()
    yield
    reset_counts()


def long_enough(document):
    keep = tf.size(document) >= 3
    dropped = tf.where(keep, 0, 1)
    return count_drops(keep, {"document_too_short": dropped})


def documents(lengths):
    return tf.data.Dataset.from_tensor_slices(lengths).map(tf.range)


def sizes(dataset):
    return [len(document) for document in dataset.as_numpy_iterator()]


def test_docstring_example():
    assert sizes(documents([5, 1, 3, 2]).filter(long_enough)) == [5, 3]
    assert drop_counts() == {"document_too_short": 2}


def test_counts_add_up_over_passes_and_reset():
    dataset = documents([5, 1, 3, 2]).filter(long_enough)
    for _ in range(3):
        sizes(dataset)
    assert drop_counts() == {"document_too_short": 6}
    reset_counts()
    assert drop_counts() == {}


def test_the_returned_counts_are_a_copy():
    count_drops(tf.constant(0), {"a": 1})
    drop_counts()["a"] = 100
    assert drop_counts() == {"a": 1}


def test_nothing_dropped_leaves_no_entry():
    for amount in (0, -3):
        count_drops(tf.constant(1), {"nothing": amount})
    assert drop_counts() == {}


@pytest.mark.parametrize("amount_dtype", [tf.int32, tf.int64])
def test_amounts_of_a_parallel_map_are_summed_by_reason(amount_dtype):
    def trim(i):
        document = tf.range(i % 7)
        tail = tf.cast(tf.size(document) % 3, amount_dtype)
        document = count_drops(document, {"tail_tokens": tail})
        return count_drops(document, {"tail_too_short": tf.minimum(tail, 1)})

    dataset = tf.data.Dataset.range(700).map(trim, num_parallel_calls=tf.data.AUTOTUNE)
    assert sizes(dataset) == [i % 7 for i in range(700)]
    tails = [i % 7 % 3 for i in range(700)]
    assert drop_counts() == {"tail_tokens": sum(tails), "tail_too_short": np.count_nonzero(tails)}


def test_a_constant_amount_is_counted_for_every_element():
    def drop(i):
        return count_drops(i, {"always": 1})

    assert list(tf.data.Dataset.range(50).map(drop).as_numpy_iterator()) == list(range(50))
    assert drop_counts() == {"always": 50}


def test_equal_calls_are_not_merged():
    def drop(i):
        first = count_drops(i, {"same": tf.cast(i % 2, tf.int32)})
        second = count_drops(i, {"same": tf.cast(i % 2, tf.int32)})
        return first + second

    list(tf.data.Dataset.range(10).map(drop))
    assert drop_counts() == {"same": 10}


def test_inside_flat_map():
    def split(i):
        pieces = tf.data.Dataset.range(i)

        def odd(piece):
            dropped = tf.cast(piece % 2 == 0, tf.int32)
            return count_drops(piece % 2 == 1, {"even_piece": dropped})

        return pieces.filter(odd)

    kept = list(tf.data.Dataset.range(6).flat_map(split).as_numpy_iterator())
    assert kept == [1, 1, 1, 3, 1, 3]
    assert drop_counts() == {"even_piece": 0 + 1 + 1 + 2 + 2 + 3}


def test_inside_a_traced_function():
    @tf.function
    def drop(value, amount):
        return count_drops(value, {"traced": amount})

    for amount in (2, 0, 5):
        assert drop(tf.constant(3.5), tf.constant(amount)) == 3.5
    assert drop_counts() == {"traced": 7}


@pytest.mark.parametrize(
    "value",
    [
        tf.constant([1, 2, 3]),
        tf.constant("一二"),
        tf.constant([], tf.float32),
        tf.constant(True),
        tf.ragged.constant([[1], [], [2, 3]]),
        {"tokens": tf.constant([4, 5]), "text": tf.constant(["a", "b"])},
    ],
    ids=["ints", "string", "empty", "bool", "ragged", "nest"],
)
def test_the_value_is_unchanged_and_keeps_its_type(value):
    dataset = tf.data.Dataset.from_tensors(value).repeat(2)
    kept_or_dropped = tf.data.Dataset.from_tensor_slices([0, 1])

    def drop(value, amount):
        return count_drops(value, {"any": amount})

    counted = tf.data.Dataset.zip(dataset, kept_or_dropped).map(drop)
    assert counted.element_spec == dataset.element_spec
    for expected, got in zip(dataset, counted, strict=True):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_array_equal(a.numpy(), b.numpy()),
            tf.nest.flatten(expected, expand_composites=True),
            tf.nest.flatten(got, expand_composites=True),
        )
    assert drop_counts() == {"any": 1}


def test_iterators_stay_checkpointable_and_resume_without_recounting(tmp_path):
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # nothing is counted ahead of time
    dataset = documents([5, 1, 3, 2, 4, 1, 1, 6]).filter(long_enough).with_options(options)
    iterator = iter(dataset)
    assert [len(next(iterator)) for _ in range(2)] == [5, 3]
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    counted_before = drop_counts()["document_too_short"]
    restored = iter(dataset)
    tf.train.Checkpoint(iterator=restored).read(path).assert_consumed()
    assert [len(document) for document in restored] == [4, 6]
    assert drop_counts()["document_too_short"] - counted_before == 3
    assert counted_before == 1


def test_counting_outlives_the_dataset_object():
    def make_iterator():
        return iter(documents([1] * 5 + [4]).filter(long_enough))

    iterator = make_iterator()
    gc.collect()
    assert len(next(iterator)) == 4
    assert drop_counts() == {"document_too_short": 5}


def test_many_threads_lose_no_count():
    dataset = documents([1, 4] * 100).filter(long_enough)
    threads = [threading.Thread(target=sizes, args=(dataset,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drop_counts() == {"document_too_short": 800}
