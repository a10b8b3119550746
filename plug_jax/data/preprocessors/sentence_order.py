"""Stage 1 examples: pairs of text segments for the sentence structural objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.preprocessors.groups import (
    BLOCKS_CUT_AT_ONCE,
    Groups,
    chunks_in_turn,
    cut_groups,
    locate_groups,
)
from plug_jax.data.preprocessors.slices import join_slices
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

# The sentence labels: the relation of B to A.
OTHER_DOCUMENT, FOLLOWS, PRECEDES = 0, 1, 2

_NUM_SPECIALS = 3  # [CLS] A [SEP] B [SEP]
_BLOCKS_JOINED = 4  # A call costs as much as a few thousand tokens.
_MOST_DOCUMENTS = 1 << 32  # per joined block, to give documents unique numbers


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def sentence_pairs(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    vocabulary: PlugVocabulary,
    max_length: int = 512,
    window: int = 32,
) -> tf.data.Dataset:
    """Makes [CLS] A [SEP] B [SEP] examples from documents (StructBERT, section 2.3).

    A document is cut into groups of tokens that fill an example, and a group into A and B at a
    random sentence boundary. Each example has one of three equally likely labels: 0, B is taken
    from another document; 1, B follows A; 2, B precedes A in the document. Groups of a single
    sentence can only get label 0. For label 0, two groups of different documents exchange their B,
    cut so that both examples are as long as their groups, up to part of a sentence.

    Groups consist of whole sentences, see `groups.cut_groups`, and most are slightly longer than an
    example. A pair that is too long loses tokens of its longer segment, A at its start and B at its
    end (BERT's rule), counted as "truncated_tokens". So examples are full, and A and B meet at
    whole sentences, whatever the label.

    If a document fills most of a window, some groups find no partner: these get label 1 or 2, or,
    with a single sentence, are dropped and counted as "no_other_document". Documents are told apart
    by their place in the stream: equal ones count as different, and so do a document and itself
    from the next epoch. These meet in a window across the end of an epoch, which each is if the
    text is smaller than a window (with the defaults, about 250,000 tokens). Seeded by
    `seqio.map_seed_manager`.

    Example, with one id a character: the documents are "天亮。" and "下雨。我走。". The second
    becomes one of these; with label 0 the first takes "我走。" in exchange, else it is dropped.

        encoder_original_tokens   [CLS] 下 雨 。 [SEP] 天 亮 。 [SEP]    label 0
                                  [CLS] 下 雨 。 [SEP] 我 走 。 [SEP]    label 1
                                  [CLS] 我 走 。 [SEP] 下 雨 。 [SEP]    label 2
        encoder_token_types       [0,  0, 0, 0,  0,   1, 1, 1,  1]
        sentence_labels           [label, 0, 0, 0, 0, 0, 0, 0, 0]
        sentence_weights          [1, 0, 0, 0, 0, 0, 0, 0, 0]

    Args:
      dataset: blocks of tokens, see `plug_jax.data.preprocessors.documents.tokenize_documents`.
      sequence_length: its "encoder_input_tokens", if given, also limits `max_length`.
      vocabulary: that of the tokens.
      max_length: maximum tokens per example, including [CLS] and [SEP].
      window: partners are found among this many chunks of up to 16 groups, see
        `plug_jax.data.preprocessors.groups.chunks_in_turn`.

    Returns:
      Batches of examples: four ragged int32 [n, None] features, no row longer than `max_length`.

    Raises:
      PlugError: the maximum length leaves no room for two tokens, or `window` is below 1.
    """
    row_length = (sequence_length or {}).get("encoder_input_tokens")
    limit = max_length if row_length is None else min(max_length, row_length)
    budget = limit - _NUM_SPECIALS
    if budget < 2:
        raise PlugError(
            f"Examples of at most {limit} tokens have no room for [CLS] A [SEP] B [SEP]: "
            f"max_length and the encoder's row length must be at least {_NUM_SPECIALS + 2}."
        )
    if window < 1:
        raise PlugError(f"Partners are exchanged within a window of 1 chunk or more, not {window}.")

    def cut_blocks(
        number: tf.Tensor, blocks: Mapping[str, tf.RaggedTensor]
    ) -> dict[str, tf.Tensor]:
        block = {name: values.values for name, values in blocks.items()}
        groups = cut_groups(block["document_lengths"], block["sentence_lengths"], budget=budget)
        document = _MOST_DOCUMENTS * number + groups["document"]
        return {**groups, "document": document, "tokens": block["tokens"]}

    def pairs_of_window(
        window: Mapping[str, tf.Tensor], seeds: Sequence[tf.Tensor]
    ) -> dict[str, tf.RaggedTensor]:
        cut_seed, *label_seeds = seeds
        is_group, is_piece = window["group_pieces"] > 0, window["piece_lengths"] > 0
        groups = locate_groups(
            tf.boolean_mask(window["piece_lengths"], is_piece),
            tf.boolean_mask(window["group_pieces"], is_group),
        )
        documents = tf.boolean_mask(window["document"], is_group)
        labels, partners = draw_labels(documents, groups.num_boundaries > 0, label_seeds)
        partnerless = tf.math.count_nonzero(labels < 0)
        labels = count_drops(labels, {"no_other_document": partnerless})
        cuts = draw_cuts(groups, labels, partners, cut_seed)
        segments = choose_segments(groups, cuts, labels, partners)
        labels = tf.boolean_mask(labels, labels >= 0)
        tokens_a_chunk = tf.reduce_sum(window["piece_lengths"], axis=1)
        segments = _skip_padding(segments, tokens_a_chunk, tf.shape(window["tokens"], tf.int64)[1])
        return assemble(tf.reshape(window["tokens"], [-1]), segments, labels, vocabulary, budget)

    joined = dataset.ragged_batch(_BLOCKS_JOINED).enumerate()
    groups = joined.map(cut_blocks, num_parallel_calls=BLOCKS_CUT_AT_ONCE)
    windows = chunks_in_turn(groups).padded_batch(window)
    return seqio.map_over_dataset(pairs_of_window, num_seeds=5)(windows)


def _skip_padding(segments: tf.Tensor, lengths: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """`choose_segments` of chunks of `lengths`, int64 [c], to those of rows padded to `width`."""
    ends = tf.cumsum(lengths)
    padding = tf.range(tf.size(lengths, tf.int64)) * width - (ends - lengths)  # before each chunk
    starts, sizes = tf.unstack(segments, axis=2)
    chunks = tf.searchsorted(ends, tf.reshape(starts, [-1]), side="right")
    starts += tf.reshape(tf.gather(padding, chunks), tf.shape(starts))
    return tf.stack([starts, sizes], axis=2)


def draw_labels(
    documents: tf.Tensor, has_b: tf.Tensor, seeds: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the labels of a window's groups, and couples those with label 0.

    Label 0 goes to an even number of groups: one of the two even numbers next to a third of all
    (plus all single-sentence groups), drawn such that each label keeps its probability. These
    groups are sorted by document, and the first half is coupled with the second: no couple is from
    one document if no document has more than half of the groups. Otherwise groups of the largest
    document drop out, those with two segments first.

    Args:
      documents: int64 [w], the documents' numbers.
      has_b: bool [w], False for groups of a single sentence.
      seeds: four int [2] seeds.

    Returns:
      Labels int32 [w], -1 for a group with neither a B nor a partner; and partners int64 [w],
      indices into the window that matter only for label 0.
    """
    label_seed, number_seed, choice_seed, order_seed = seeds
    shape = tf.shape(has_b)
    labels = tf.random.stateless_uniform(
        shape, label_seed, minval=FOLLOWS, maxval=PRECEDES + 1, dtype=tf.int32
    )
    labels = tf.where(has_b, labels, -1)  # those of groups without a partner

    shares = tf.where(has_b, tf.constant(1 / 3, tf.float64), 1.0)  # of label 0
    draw = tf.random.stateless_uniform([], number_seed, dtype=tf.float64)
    number = 2 * tf.cast(tf.reduce_sum(shares) / 2 + draw, tf.int32)
    number = tf.maximum(number, tf.math.count_nonzero(~has_b, dtype=tf.int32))
    choice = tf.random.stateless_uniform(shape, choice_seed, dtype=tf.float64)
    choice = tf.where(has_b, choice, -1.0)  # groups of a single sentence first
    candidates = tf.cast(tf.argsort(choice)[:number], tf.int64)

    _, document, counts = tf.unique_with_counts(tf.gather(documents, candidates), out_idx=tf.int64)
    num_documents, total = tf.size(counts, tf.int64), tf.reduce_sum(counts)
    largest = tf.reduce_max(tf.concat([counts, [0]], axis=0))
    ranks = tf.random.experimental.stateless_shuffle(tf.range(num_documents), order_seed)
    ranks += num_documents * tf.cast(counts == largest, tf.int64)  # the largest is last
    keys = 2 * tf.gather(ranks, document) + tf.cast(tf.gather(has_b, candidates), tf.int64)
    candidates = tf.gather(candidates, tf.argsort(keys, stable=True))

    num_couples = tf.minimum(total // 2, total - largest)
    first, second = candidates[:num_couples], candidates[num_couples : 2 * num_couples]
    coupled = tf.concat([first, second], axis=0)[:, tf.newaxis]
    partners = tf.scatter_nd(coupled, tf.concat([second, first], axis=0), tf.shape(has_b, tf.int64))
    others = tf.fill([2 * num_couples], OTHER_DOCUMENT)
    return tf.tensor_scatter_nd_update(labels, coupled, others), partners


def draw_cuts(groups: Groups, labels: tf.Tensor, partners: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The tokens of A in each group, int64 [w]; all of them in a group without a boundary.

    In a couple that exchanges its B, the longer group is cut where its A or its B, with equal
    probability, is nearest in length to its partner's. So each example is as long as one of the two
    groups, and its length does not reveal its label.

    Takes what `locate_groups` and `draw_labels` return, and an int [2] seed.
    """
    draws = tf.random.stateless_uniform([2, tf.size(groups.starts)], seed, dtype=tf.float64)
    has_b = groups.num_boundaries > 0
    chosen = tf.cast(draws[0] * tf.cast(groups.num_boundaries, tf.float64), tf.int64)
    # Without boundaries this is the group's end.
    drawn = tf.gather(groups.boundaries, groups.first_boundary + chosen) - groups.starts

    partner_lengths = tf.gather(groups.lengths, partners)
    partner_drawn = tf.gather(drawn, partners)
    as_long_b = groups.lengths - (partner_lengths - partner_drawn)
    wanted = groups.starts + tf.where(draws[1] < 0.5, partner_drawn, as_long_b)
    last = groups.first_boundary + tf.maximum(groups.num_boundaries - 1, 0)
    above = tf.searchsorted(groups.boundaries, wanted, out_type=tf.int64)
    above = tf.clip_by_value(above, groups.first_boundary, last)
    below = tf.maximum(above - 1, groups.first_boundary)
    above, below = tf.gather(groups.boundaries, above), tf.gather(groups.boundaries, below)
    nearest = tf.where(above - wanted < wanted - below, above, below) - groups.starts

    comes_second = partners < tf.range(tf.size(partners, tf.int64))
    is_longer = (groups.lengths > partner_lengths) | (
        (groups.lengths == partner_lengths) & comes_second
    )
    follows = (labels == OTHER_DOCUMENT) & is_longer & has_b & tf.gather(has_b, partners)
    return tf.where(follows, nearest, drawn)


def choose_segments(
    groups: Groups, a_lengths: tf.Tensor, labels: tf.Tensor, partners: tf.Tensor
) -> tf.Tensor:
    """The positions of each example's two segments in the window's tokens.

    Takes the window's groups, tokens of A in each (int64 [w]) and what `draw_labels` returns. Gives
    int64 [examples, 2, 2]: for the first and the second segment, its start and its length. A group
    with label -1 is no example.
    """
    b_lengths = groups.lengths - a_lengths
    a = tf.stack([groups.starts, a_lengths], axis=1)  # [w, 2]
    b = tf.stack([groups.starts + a_lengths, b_lengths], axis=1)
    given = tf.where(b_lengths[:, tf.newaxis] > 0, b, a)
    label = labels[:, tf.newaxis]
    first = tf.where(label == PRECEDES, b, a)
    second = tf.where(label == PRECEDES, a, b)
    second = tf.where(label == OTHER_DOCUMENT, tf.gather(given, partners), second)
    return tf.boolean_mask(tf.stack([first, second], axis=1), labels >= 0)


def trim_pair(a_length: tf.Tensor, b_length: tf.Tensor, budget: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Lengths that together fit `budget`, if tokens are removed one by one from the longer segment,
    or from B if both are equal (BERT's rule). Int64 of any equal shapes.
    """
    half = budget // 2
    return (
        tf.minimum(a_length, tf.maximum(budget - b_length, budget - half)),
        tf.minimum(b_length, tf.maximum(budget - a_length, half)),
    )


def assemble(
    tokens: tf.Tensor,
    segments: tf.Tensor,
    labels: tf.Tensor,
    vocabulary: PlugVocabulary,
    budget: int,
) -> dict[str, tf.RaggedTensor]:
    """Builds the features, int32 [examples, None], of [CLS] A [SEP] B [SEP].

    Takes the window's tokens (int32 [t]), the segments (int64 [examples, 2, 2], as from
    `choose_segments`) and the labels (int32 [examples]).
    """
    (a_start, b_start), (a_length, b_length) = (
        tf.unstack(part, axis=1) for part in tf.unstack(segments, axis=2)
    )
    a_end, full_length = a_start + a_length, a_length + b_length
    a_length, b_length = trim_pair(a_length, b_length, budget)
    a_start = a_end - a_length
    trimmed = tf.reduce_sum(full_length - a_length - b_length)
    labels = count_drops(labels, {"truncated_tokens": trimmed})

    # Each example is five slices of one pool: the tokens, then [CLS] and [SEP].
    pool = tf.concat([tokens, [vocabulary.cls_id, vocabulary.sep_id]], axis=0)
    cls = tf.fill(tf.shape(a_start), tf.size(tokens, tf.int64))
    sep, one = cls + 1, tf.ones_like(cls)
    lengths = tf.stack([one, a_length, one, b_length, one], axis=1)

    starts = tf.stack([cls, a_start, sep, b_start, sep], axis=1)
    original = join_slices(pool, starts, lengths)
    # Counts up to the start of B, which is 0.
    places = tf.ragged.range(-(a_length + 2), b_length + 1).values
    firsts = original.row_splits[:-1, tf.newaxis]

    def at_cls(values: tf.Tensor) -> tf.RaggedTensor:
        shape = tf.shape(original.values, tf.int64)
        return original.with_values(tf.scatter_nd(firsts, values, shape))

    return {
        "encoder_original_tokens": original,
        "encoder_token_types": original.with_values(tf.cast(places >= 0, tf.int32)),
        "sentence_labels": at_cls(labels),
        "sentence_weights": at_cls(tf.ones_like(labels)),
    }
