"""Batches of examples as ragged tensors, built from slices of one vector."""

from __future__ import annotations

import tensorflow as tf


def join_slices(values: tf.Tensor, starts: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Row i is the slices values[starts[i, j] : starts[i, j] + lengths[i, j]], one after the other.

    Takes any [v], int64 [n, p] and int64 [n, p]; gives ragged [n, None].

    Example: values [1, 2, 3, 4, 5], starts [[0, 3], [4, 0]], lengths [[2, 1], [1, 0]] give
    [[1, 2, 4], [5]].
    """
    first = tf.reshape(starts, [-1])
    positions = tf.ragged.range(first, first + tf.reshape(lengths, [-1])).values
    return tf.RaggedTensor.from_row_lengths(
        tf.gather(values, positions), tf.reduce_sum(lengths, axis=1), validate=False
    )


def repeat_values(values: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """tf.repeat for integers [n] and int64 [n] lengths, some of which may be large.

    tf.repeat would use a matrix as wide as the largest.

    Example: values [7, 8, 9] and lengths [2, 0, 1] give [7, 7, 9].
    """
    ends = tf.cumsum(lengths)
    steps = values - tf.concat([[0], values[:-1]], axis=0)
    # One extra position, for lengths of 0 at the end.
    size = tf.reduce_sum(lengths) + 1
    return tf.cumsum(tf.scatter_nd((ends - lengths)[:, tf.newaxis], steps, size[tf.newaxis]))[:-1]


def flat_values(batch: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """All values of a batch [b, None], concatenated; those of a single example [n] unchanged."""
    return batch.flat_values if isinstance(batch, tf.RaggedTensor) else batch


def with_flat_values(
    batch: tf.Tensor | tf.RaggedTensor, values: tf.Tensor
) -> tf.Tensor | tf.RaggedTensor:
    """The inverse of `flat_values`: `values` in the shape of `batch`."""
    return batch.with_flat_values(values) if isinstance(batch, tf.RaggedTensor) else values
