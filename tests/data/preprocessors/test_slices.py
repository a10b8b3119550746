"""Slices of one vector as ragged rows, for any number and length."""

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from plug_jax.data.preprocessors.slices import (
    flat_values,
    join_slices,
    repeat_values,
    with_flat_values,
)


def test_join_docstring_example():
    joined = join_slices(
        tf.constant([1, 2, 3, 4, 5]),
        tf.constant([[0, 3], [4, 0]], tf.int64),
        tf.constant([[2, 1], [1, 0]], tf.int64),
    )
    assert joined.to_list() == [[1, 2, 4], [5]]


def test_repeat_values_docstring_example():
    repeated = repeat_values(tf.constant([7, 8, 9]), tf.constant([2, 0, 1], tf.int64))
    assert repeated.numpy().tolist() == [7, 7, 9]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 5)), max_size=8),
    st.sampled_from([tf.int32, tf.int64]),
)
def test_values_are_repeated(pairs, dtype):
    values, lengths = (
        tf.reshape(tf.constant(part, kind), [len(pairs)])
        for part, kind in zip(
            zip(*pairs, strict=True) if pairs else ([], []), (dtype, tf.int64), strict=True
        )
    )
    repeated = repeat_values(values, lengths)
    assert repeated.dtype == dtype
    assert repeated.numpy().tolist() == [value for value, length in pairs for _ in range(length)]


@st.composite
def slices(draw):
    """(starts, lengths), lists [n, p], of slices within 20 values."""
    num_slices = draw(st.integers(1, 4))
    ends = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
    rows = draw(st.lists(st.lists(ends, min_size=num_slices, max_size=num_slices), max_size=6))
    starts = [[begin for begin, _ in row] for row in rows]
    lengths = [[end - begin for begin, end in row] for row in rows]
    shape = [len(rows), num_slices]
    return (tf.reshape(tf.constant(part, tf.int64), shape) for part in (starts, lengths))


@settings(deadline=None, max_examples=60)
@given(slices(), st.sampled_from([tf.int32, tf.int64]))
def test_rows_are_their_slices(start_and_length, dtype):
    starts, lengths = start_and_length
    values = tf.range(100, 120, dtype=dtype)
    joined = join_slices(values, starts, lengths)
    assert joined.dtype == dtype
    # It is constructed without validation.
    tf.RaggedTensor.from_row_splits(joined.flat_values, joined.row_splits, validate=True)
    rows = list(zip(starts.numpy().tolist(), lengths.numpy().tolist(), strict=True))
    assert joined.to_list() == [
        [100 + start + i for start, length in zip(*row, strict=True) for i in range(length)]
        for row in rows
    ]


def test_flat_values_and_back():
    batch = tf.ragged.constant([[1, 2], [], [3]])
    single = tf.constant([1, 2, 3])
    for like in (batch, single):
        values = flat_values(like)
        assert values.numpy().tolist() == [1, 2, 3]
        doubled = with_flat_values(like, 2 * values)
        assert type(doubled) is type(like)
        assert tf.reduce_all(doubled == 2 * like)
    assert with_flat_values(batch, tf.constant([7, 8, 9])).to_list() == [[7, 8], [], [9]]
