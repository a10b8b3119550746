"""Groups of consecutive sentences of a document that fill a stage 1 example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

# Groups per chunk, and blocks whose chunks are interleaved. A block's documents are interleaved
# too, so that a long document such as a novel does not fill whole windows, where groups would find
# no partners from other documents.
_GROUPS_A_CHUNK, _BLOCKS_AT_ONCE = 16, 4
# Threads that cut blocks: no more than needed, because blocks of long documents are large.
BLOCKS_CUT_AT_ONCE = 2
# A document's last group has at least this fraction of a full one, taken from its predecessor.
_LEAST_SHARE = 8


def cut_groups(
    document_lengths: tf.Tensor, sentence_lengths: tf.Tensor, *, budget: int
) -> dict[str, tf.Tensor]:
    """Cuts a block's documents into groups of whole sentences that just fill `budget` tokens.

    A group ends with the first sentence that reaches `budget`, so most are slightly too long: the
    excess is cut later, at the ends of an example, alike for all labels. Only a document's last
    group is shorter, and its predecessor if the last would have less than an eighth of a full one.
    A group's pieces are its sentences; a sentence longer than half a full group is cut into even
    pieces of at most an eighth.

    Example: document_lengths [26, 3], sentence_lengths [4, 9, 7, 6, 3] and budget 16 give groups of
    20, 6 and 3 tokens, with the sentence of 9 in five pieces:

        piece_lengths  [4, 2, 2, 2, 2, 1, 7, 6, 3]
        group_pieces   [7, 1, 1]
        document       [0, 0, 1]

    Args:
      document_lengths: int [d], tokens of each document, none 0.
      sentence_lengths: int [s], tokens of each sentence, none 0.
      budget: tokens of a full group, at least 2.

    Returns:
      piece_lengths int64 [p], tokens of each piece; group_pieces int64 [g], pieces of each group;
      document int64 [g], the document of each group.
    """
    document_ends = tf.cumsum(tf.cast(document_lengths, tf.int64))
    piece_lengths = _cut_long_sentences(tf.cast(sentence_lengths, tf.int64), budget // 2)
    piece_ends = tf.cumsum(piece_lengths)
    # The latest possible start of each document's last group.
    latest = document_ends - budget // _LEAST_SHARE
    latest = _ends_before(piece_ends, tf.searchsorted(piece_ends, latest, side="right"))

    def end_groups(
        number: tf.Tensor, starts: tf.Tensor, group_ends: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        """Ends of the n-th groups of all documents; for finished documents, their end again."""
        reached = tf.minimum(starts + budget, document_ends)
        ends = tf.gather(piece_ends, tf.searchsorted(piece_ends, reached))
        too_late = (ends > latest) & (ends < document_ends) & (latest > starts)
        ends = tf.where(too_late, latest, ends)
        return number + 1, ends, group_ends.write(number, ends)

    _, _, group_ends = tf.while_loop(
        lambda number, starts, _: (number == 0) | tf.reduce_any(starts < document_ends),
        end_groups,
        (
            0,
            document_ends - tf.cast(document_lengths, tf.int64),
            tf.TensorArray(tf.int64, size=0, dynamic_size=True, element_shape=[None]),
        ),
    )
    group_ends, _ = tf.unique(tf.reshape(tf.transpose(group_ends.stack()), [-1]))
    pieces_up_to = tf.searchsorted(piece_ends, group_ends, side="right", out_type=tf.int64)
    return {
        "piece_lengths": piece_lengths,
        "group_pieces": _differences(pieces_up_to),
        "document": tf.searchsorted(document_ends, group_ends, out_type=tf.int64),
    }


def _differences(ends: tf.Tensor) -> tf.Tensor:
    """Lengths of consecutive intervals with these `ends`, from 0: the inverse of tf.cumsum."""
    return ends - tf.concat([[0], ends[:-1]], axis=0)


def _cut_long_sentences(lengths: tf.Tensor, longest: int) -> tf.Tensor:
    """Sentence lengths int64 [s] to piece lengths; those over `longest` are cut evenly."""
    at_most = max(longest // 4, 1)
    counts = tf.where(lengths > longest, -(-lengths // at_most), 1)
    sentence = tf.repeat(tf.range(tf.size(lengths)), counts)
    first_piece = tf.gather(tf.cumsum(counts, exclusive=True), sentence)
    piece = tf.range(tf.size(sentence, tf.int64)) - first_piece
    lengths, counts = tf.gather(lengths, sentence), tf.gather(counts, sentence)
    return lengths // counts + tf.cast(piece < lengths % counts, tf.int64)


def chunks_in_turn(blocks: tf.data.Dataset) -> tf.data.Dataset:
    """Groups of blocks in chunks of up to 16, interleaved over 4 blocks.

    Takes the result of `cut_groups` with the block's `tokens`, int32 [t]. Chunks have the same
    features, padded with 0 to the longest of their block.
    """
    chunks = blocks.map(_chunks, num_parallel_calls=BLOCKS_CUT_AT_ONCE)
    return chunks.interleave(tf.data.Dataset.from_tensor_slices, cycle_length=_BLOCKS_AT_ONCE)


def _chunks(block: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A block's groups, `_GROUPS_A_CHUNK` per row, with their pieces and tokens.

    First come each document's first chunks, then their second ones, and so on.
    """
    num_groups = tf.size(block["group_pieces"], tf.int64)
    firsts = tf.range(0, num_groups, _GROUPS_A_CHUNK)
    groups = tf.minimum(firsts + _GROUPS_A_CHUNK, num_groups)  # up to each chunk's end
    pieces = _ends_before(tf.cumsum(block["group_pieces"]), groups)
    tokens = _ends_before(tf.cumsum(block["piece_lengths"]), pieces)
    ends = {"document": groups, "group_pieces": groups, "piece_lengths": pieces, "tokens": tokens}

    document = tf.gather(block["document"], firsts)  # increasing
    turns = tf.range(tf.size(document)) - tf.searchsorted(document, document)
    order = tf.argsort(turns, stable=True)

    def rows(values: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
        splits = tf.concat([[0], ends], axis=0)
        ragged = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        return tf.gather(ragged, order).to_tensor()

    return {name: rows(block[name], ends[name]) for name in ends}


def _ends_before(ends: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """End of the first `counts` intervals that end at `ends`; 0 for none."""
    return tf.gather(tf.concat([[0], ends], axis=0), counts)


class Groups(NamedTuple):
    """The groups of a window, w of them, in the window's tokens; all int64.

    Group i has its boundaries, where A may end, at boundaries[first_boundary[i] :
    first_boundary[i] + num_boundaries[i]].
    """

    starts: tf.Tensor  # [w]
    lengths: tf.Tensor  # [w]
    first_boundary: tf.Tensor  # [w]
    num_boundaries: tf.Tensor  # [w]
    boundaries: tf.Tensor  # [b], increasing


def locate_groups(piece_lengths: tf.Tensor, group_pieces: tf.Tensor) -> Groups:
    """Positions of groups and boundaries, from `cut_groups`' int64 [p] and [w]."""
    ends = tf.cumsum(piece_lengths)
    beyond = tf.cumsum(group_pieces)
    first = beyond - group_pieces
    group_ends = tf.gather(ends, beyond - 1)
    lengths = _differences(group_ends)
    return Groups(group_ends - lengths, lengths, first, group_pieces - 1, ends)
