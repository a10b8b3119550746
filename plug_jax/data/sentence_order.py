"""Stage 1 examples: pairs of text segments for the sentence structural objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.sentence_split import split_sentences
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

# The sentence labels: what the text of B is to the text of A.
OTHER_DOCUMENT, FOLLOWS, PRECEDES = 0, 1, 2

_NUM_SPECIALS = 3  # [CLS] A [SEP] B [SEP]
# Groups are taken in turn from this many documents, so that a long document, a novel for instance,
# does not fill whole windows, in which nobody would find a partner from another document.
_DOCUMENTS_AT_ONCE = 16


def sentence_pairs(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    vocabulary: PlugVocabulary,
    max_length: int = 512,
    window: int = 128,
) -> tf.data.Dataset:
    """Makes [CLS] A [SEP] B [SEP] examples out of documents (StructBERT, section 2.3).

    A document is cut into groups of consecutive sentences that fill an example, and a group into A
    and B at a random sentence boundary. Each example has one of three labels, equally likely:
    0, B is taken from another document; 1, B follows A; 2, B precedes A in the document. Groups of
    a single sentence can only get label 0. Partners from other documents are exchanged within
    `window` groups, so that every A and every B is used.

    Where a document fills most of a window, some groups find no partner: these get label 1 or 2, or
    are dropped and counted as "no_other_document" when they have one sentence. A pair that is too
    long, which only label 0 makes, loses tokens at the end of its longer segment (BERT's rule),
    counted as "truncated_tokens". Documents without a token are counted as "empty_document".
    Sentences longer than half an example are cut into even pieces, each of which then counts as a
    sentence. Seeded by `seqio.map_seed_manager`.

    Example, with one id a character: the documents are "天亮。" and "下雨。我走。". The second
    becomes one of these; with label 0 the first takes "我走。" in exchange, else it is dropped.

        encoder_original_tokens   [CLS] 下 雨 。 [SEP] 天 亮 。 [SEP]    label 0
                                  [CLS] 下 雨 。 [SEP] 我 走 。 [SEP]    label 1
                                  [CLS] 我 走 。 [SEP] 下 雨 。 [SEP]    label 2
        encoder_token_types       [0,  0, 0, 0,  0,   1, 1, 1,  1]
        sentence_labels           [label, 0, 0, 0, 0, 0, 0, 0, 0]
        sentence_weights          [1, 0, 0, 0, 0, 0, 0, 0, 0]

    Args:
      dataset: {"text": string scalar, a document}; other features are left out.
      sequence_length: its "encoder_input_tokens", if given, bounds `max_length` too.
      vocabulary: encodes each sentence on its own.
      max_length: the most tokens of an example, [CLS] and [SEP] included.
      window: groups among which partners are exchanged.

    Returns:
      The examples: four int32 [n] features with n <= `max_length`.

    Raises:
      PlugError: the maximum length leaves no room for two tokens, or `window` is below 2.
    """
    row_length = (sequence_length or {}).get("encoder_input_tokens")
    limit = max_length if row_length is None else min(max_length, row_length)
    budget = limit - _NUM_SPECIALS
    if budget < 2:
        raise PlugError(
            f"Examples of at most {limit} tokens have no room for [CLS] A [SEP] B [SEP]: "
            f"max_length and the encoder's row length must be at least {_NUM_SPECIALS + 2}."
        )
    if window < 2:
        raise PlugError(
            f"Partners are exchanged within a window of 2 groups or more, not {window}."
        )

    def groups_of_document(
        numbered: tuple[tf.Tensor, Mapping[str, tf.Tensor]], seed: tf.Tensor
    ) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        number, document = numbered
        sentences = vocabulary.encode_tf(split_sentences(document["text"]))
        groups, a_lengths = group_sentences(sentences, seed, budget=budget)
        empty = tf.cast(tf.equal(groups.nrows(), 0), tf.int64)
        a_lengths = count_drops(a_lengths, {"empty_document": empty})
        return {
            "tokens": groups,
            "a_length": a_lengths,
            "document": tf.fill(tf.shape(a_lengths), number),
        }

    def pairs_of_window(
        groups: Mapping[str, tf.Tensor | tf.RaggedTensor], seeds: Sequence[tf.Tensor]
    ) -> dict[str, tf.RaggedTensor]:
        has_b = groups["tokens"].row_lengths() > groups["a_length"]
        labels, partners = draw_labels(groups["document"], has_b, seeds)
        partnerless = tf.math.count_nonzero(labels < 0)
        labels = count_drops(labels, {"no_other_document": partnerless})
        segments = choose_segments(groups["tokens"], groups["a_length"], labels, partners)
        labels = tf.boolean_mask(labels, labels >= 0)
        return assemble(groups["tokens"].flat_values, segments, labels, vocabulary, budget)

    documents = seqio.map_over_dataset(groups_of_document, num_seeds=1)(dataset.enumerate())
    groups = documents.interleave(
        lambda document: tf.data.Dataset.from_tensors(document).unbatch(),
        cycle_length=_DOCUMENTS_AT_ONCE,
    )
    windows = groups.ragged_batch(window)
    return seqio.map_over_dataset(pairs_of_window, num_seeds=3)(windows).unbatch()


def group_sentences(
    sentences: tf.RaggedTensor, seed: tf.Tensor, *, budget: int
) -> tuple[tf.RaggedTensor, tf.Tensor]:
    """Fills groups of at most `budget` tokens with consecutive sentences, and cuts each in A and B.

    Groups are as long as possible, but a single sentence left over at the end takes another from
    the group before if that has three or more. A and B meet at a random sentence boundary.

    Args:
      sentences: ids, int [sentences, None]; those without a token count for nothing.
      seed: int [2].
      budget: tokens of a group, at least 2; sentences longer than half of it are cut.

    Returns:
      The groups, ids [groups, None], and the tokens of A in each, int64 [groups]: all of them in a
      group of one sentence, which has no B.
    """
    lengths = _cut_long_sentences(sentences.row_lengths(), longest=budget // 2)
    ends = tf.cumsum(lengths)
    starts = ends - lengths
    # `borders[g] : borders[g + 1]` are the sentences of group g.
    borders = _group_borders(starts, ends, budget)
    first, beyond = borders[:-1], borders[1:]
    fractions = tf.random.stateless_uniform(tf.shape(first), seed, dtype=tf.float64)
    places = tf.cast(beyond - first - 1, tf.float64)  # where A can end
    last_of_a = first + tf.cast(fractions * places, tf.int64)
    begins = tf.gather(starts, first)
    group_lengths = tf.gather(ends, beyond - 1) - begins
    groups = tf.RaggedTensor.from_row_lengths(sentences.flat_values, group_lengths, validate=False)
    return groups, tf.gather(ends, last_of_a) - begins


def _cut_long_sentences(lengths: tf.Tensor, *, longest: int) -> tf.Tensor:
    """Lengths int64 [s] of sentences to those of even pieces of at most `longest` tokens."""
    counts = -(-lengths // longest)
    sentence = tf.repeat(tf.range(tf.size(lengths)), counts)
    first_piece = tf.gather(tf.cumsum(counts, exclusive=True), sentence)
    piece = tf.range(tf.size(sentence, tf.int64)) - first_piece
    lengths, counts = tf.gather(lengths, sentence), tf.gather(counts, sentence)
    return lengths // counts + tf.cast(piece < lengths % counts, tf.int64)


def _group_borders(starts: tf.Tensor, ends: tf.Tensor, budget: int) -> tf.Tensor:
    """Sentences that begin a group, and the number of sentences: int64 [groups + 1].

    `starts` and `ends` are the sentences' token offsets, int64 [s], none longer than `budget`.
    """
    num_sentences = tf.size(ends, tf.int64)
    next_first = tf.searchsorted(ends, starts + budget, side="right", out_type=tf.int64)
    _, _, borders = tf.while_loop(
        lambda first, *_: first < num_sentences,
        lambda first, group, borders: (next_first[first], group + 1, borders.write(group, first)),
        (
            tf.zeros([], tf.int64),
            0,
            tf.TensorArray(tf.int64, size=0, dynamic_size=True, element_shape=[]),
        ),
    )
    borders = tf.concat([borders.stack(), [num_sentences]], axis=0)
    sizes = borders[1:] - borders[:-1]
    lonely_end = tf.reduce_any((sizes[-1:] == 1) & (sizes[-2:-1] >= 3))
    return borders - tf.cast(lonely_end, tf.int64) * tf.one_hot(
        tf.size(borders) - 2, tf.size(borders), dtype=tf.int64
    )


def draw_labels(
    documents: tf.Tensor, has_b: tf.Tensor, seeds: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the labels of a window's groups, and for label 0 the group that gives its B.

    The groups with label 0 are sorted by document and each takes from the one `shift` places on,
    where `shift` is the largest number of groups of one document: every group gives once, none to
    its own document. That needs a document to have at most half of the groups; beyond that, groups
    of the largest document step out, groups with two segments first.

    Args:
      documents: int64 [w], the documents' numbers.
      has_b: bool [w], False for groups of a single sentence.
      seeds: three int [2] seeds.

    Returns:
      Labels int32 [w], -1 for a group that has neither a B nor a partner; and partners int64 [w],
      indices into the window that matter only for label 0.
    """
    label_seed, order_seed, fallback_seed = seeds
    shape = tf.shape(has_b)
    labels = tf.random.stateless_uniform(shape, label_seed, maxval=3, dtype=tf.int32)
    labels = tf.where(has_b, labels, OTHER_DOCUMENT)

    candidates = tf.where(labels == OTHER_DOCUMENT)[:, 0]
    _, document, counts = tf.unique_with_counts(tf.gather(documents, candidates), out_idx=tf.int64)
    num_documents, total = tf.size(counts, tf.int64), tf.reduce_sum(counts)
    largest = tf.reduce_max(tf.concat([counts, [0]], axis=0))
    ranks = tf.random.experimental.stateless_shuffle(tf.range(num_documents), order_seed)
    ranks += num_documents * tf.cast(counts == largest, tf.int64)  # the largest is last
    keys = 2 * tf.gather(ranks, document) + tf.cast(tf.gather(has_b, candidates), tf.int64)
    candidates = tf.gather(candidates, tf.argsort(keys, stable=True))

    shift = tf.minimum(largest, total - largest)
    num_matched = tf.minimum(total, 2 * (total - largest))
    matched, unmatched = candidates[:num_matched], candidates[num_matched:]
    givers = tf.concat([matched[shift:], matched[:shift]], axis=0)
    partners = tf.scatter_nd(matched[:, tf.newaxis], givers, tf.shape(has_b, tf.int64))

    fallbacks = tf.random.stateless_uniform(
        shape, fallback_seed, minval=FOLLOWS, maxval=PRECEDES + 1, dtype=tf.int32
    )
    fallbacks = tf.gather(tf.where(has_b, fallbacks, -1), unmatched)
    return tf.tensor_scatter_nd_update(labels, unmatched[:, tf.newaxis], fallbacks), partners


def choose_segments(
    groups: tf.RaggedTensor, a_lengths: tf.Tensor, labels: tf.Tensor, partners: tf.Tensor
) -> tf.Tensor:
    """Where the two segments of each example lie among the window's tokens.

    Takes the window's groups (ids [w, None]), tokens of A in each (int64 [w]) and what
    `draw_labels` returns. Gives int64 [examples, 2, 2]: for the first and the second segment, its
    start in `groups.flat_values` and its length. A group with label -1 is no example.
    """
    starts = groups.row_starts()
    b_lengths = groups.row_lengths() - a_lengths
    a = tf.stack([starts, a_lengths], axis=1)  # [w, 2]
    b = tf.stack([starts + a_lengths, b_lengths], axis=1)
    given = tf.where(b_lengths[:, tf.newaxis] > 0, b, a)
    label = labels[:, tf.newaxis]
    first = tf.where(label == PRECEDES, b, a)
    second = tf.where(label == PRECEDES, a, b)
    second = tf.where(label == OTHER_DOCUMENT, tf.gather(given, partners), second)
    return tf.boolean_mask(tf.stack([first, second], axis=1), labels >= 0)


def trim_pair(a_length: tf.Tensor, b_length: tf.Tensor, budget: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Lengths that fit `budget` together: what is left if one token after the other is taken from
    the longer segment, or from B when both are equal (BERT's rule). Int64 of any equal shapes.
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
    full_length = a_length + b_length
    a_length, b_length = trim_pair(a_length, b_length, budget)
    trimmed = tf.reduce_sum(full_length - a_length - b_length)
    labels = count_drops(labels, {"truncated_tokens": trimmed})

    # Each example is five pieces of one pool: the tokens, then [CLS] and [SEP].
    pool = tf.concat([tokens, [vocabulary.cls_id, vocabulary.sep_id]], axis=0)
    cls = tf.fill(tf.shape(a_start), tf.size(tokens, tf.int64))
    sep, one = cls + 1, tf.ones_like(cls)
    starts = tf.reshape(tf.stack([cls, a_start, sep, b_start, sep], axis=1), [-1])
    lengths = tf.stack([one, a_length, one, b_length, one], axis=1)
    example_lengths = tf.reduce_sum(lengths, axis=1)
    lengths = tf.reshape(lengths, [-1])
    offsets = tf.repeat(starts - tf.cumsum(lengths, exclusive=True), lengths)
    positions = offsets + tf.range(tf.size(offsets, tf.int64))

    def per_piece(*values: tf.Tensor | int) -> tf.Tensor:
        columns = [tf.broadcast_to(value, tf.shape(labels)) for value in values]
        return tf.repeat(tf.reshape(tf.stack(columns, axis=1), [-1]), lengths)

    features = {
        "encoder_original_tokens": tf.gather(pool, positions),
        "encoder_token_types": per_piece(0, 0, 0, 1, 1),
        "sentence_labels": per_piece(labels, 0, 0, 0, 0),
        "sentence_weights": per_piece(1, 0, 0, 0, 0),
    }
    return {
        name: tf.RaggedTensor.from_row_lengths(values, example_lengths, validate=False)
        for name, values in features.items()
    }
