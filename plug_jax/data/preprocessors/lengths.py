"""Stage 2 examples: windows of text, one part for the encoder and the next for the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.preprocessors.slices import join_slices
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

_ENCODER_SPECIALS = 2  # [CLS] text [SEP]
_DECODER_SPECIALS = 1  # [CLS] text in the inputs, text [SEP] in the targets


@tf.autograph.experimental.do_not_convert  # converting takes seconds and changes nothing
def sample_lengths(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    vocabulary: PlugVocabulary,
    min_length: int = 32,
    max_length: int = 512,
    close_at_document_end_only: bool = False,
    sentence_end_probability: float = 0.0,
) -> tf.data.Dataset:
    """Cuts documents into windows of random length: the encoder's text, and its continuation.

    A window has an encoder length e, which counts [CLS] and [SEP], and a decoder length d, which
    counts one of them. Both are independently uniform on [`min_length`, `max_length`] (PLUG's
    second stage); if less text remains than the longest window takes, the pair (e, d) is uniform
    over all pairs that fit. Consecutive windows use up the document. A rest too short for a window
    is dropped and counted: "document_too_short" for a whole document, otherwise "tail_too_short"
    and, for its tokens, "tail_tokens". Seeded by `seqio.map_seed_manager`.

    Example, with one id a character and min_length = max_length = 4: "天亮了下雨我走了" makes one
    window and leaves a tail of three tokens.

        encoder_original_tokens   [CLS] 天 亮 [SEP]
        encoder_token_types       [0,   0, 0, 0]
        decoder_input_tokens      [CLS] 了 下 雨
        decoder_target_tokens     了 下 雨 [SEP]
        decoder_loss_weights      [1, 1, 1, 1]

    Args:
      dataset: blocks of tokens, see `plug_jax.data.preprocessors.documents.tokenize_documents`.
      sequence_length: its "encoder_input_tokens" and "decoder_target_tokens", if given, also limit
        the encoder's and the decoder's length.
      vocabulary: that of the tokens.
      min_length: the shortest e and d, at least 3.
      max_length: the longest e and d.
      close_at_document_end_only: the decoder's targets end with [SEP] only at the end of the
        document, and elsewhere with the first token of the next window.
      sentence_end_probability: how often the encoder's text is cut back to the last sentence end
        that leaves `min_length`, if there is one; and, drawn independently, the decoder's.

    Returns:
      Batches of windows: two ragged int32 [n, None] features for the encoder and three for the
      decoder.

    Raises:
      PlugError: lengths that leave no room, or a probability outside [0, 1].
    """
    bounds = sequence_length or {}
    max_encoder = _smaller(max_length, bounds.get("encoder_input_tokens"))
    max_decoder = _smaller(max_length, bounds.get("decoder_target_tokens"))
    if min_length < 3:
        raise PlugError(f"min_length must be at least 3 ([CLS], a token, [SEP]), not {min_length}.")
    if min(max_encoder, max_decoder) < min_length:
        raise PlugError(
            f"Windows of {min_length} (min_length) tokens or more do not fit: max_length and the "
            f"row lengths allow {max_encoder} for the encoder and {max_decoder} for the decoder."
        )
    if not 0 <= sentence_end_probability <= 1:
        raise PlugError(
            f"sentence_end_probability is a probability in [0, 1], not {sentence_end_probability}."
        )
    sampler = WindowSampler(min_length, max_encoder, max_decoder, sentence_end_probability)

    def windows_of_block(
        block: Mapping[str, tf.Tensor], seeds: Sequence[tf.Tensor]
    ) -> dict[str, tf.RaggedTensor]:
        documents = tf.cast(block["document_lengths"], tf.int64)
        sentence_ends = tf.cumsum(tf.cast(block["sentence_lengths"], tf.int64))
        starts, lengths = sampler.draw(documents, sentence_ends, seeds)
        lengths = _count_dropped(documents, starts, lengths)
        return cut_windows(
            block["tokens"],
            documents,
            starts,
            lengths,
            vocabulary=vocabulary,
            close_at_document_end_only=close_at_document_end_only,
        )

    return seqio.map_over_dataset(windows_of_block, num_seeds=2)(dataset)


def _smaller(length: int, bound: int | None) -> int:
    return length if bound is None else min(length, bound)


@dataclasses.dataclass(frozen=True)
class WindowSampler:
    """Draws how much text of a document goes to the encoder and the decoder of each window.

    `min_length`, `max_encoder` and `max_decoder` count special tokens, as in `sample_lengths`;
    everything else here counts tokens of text.
    """

    min_length: int
    max_encoder: int
    max_decoder: int
    sentence_end_probability: float = 0.0

    @property
    def shortest(self) -> int:
        """Tokens of text in the shortest window."""
        return 2 * self.min_length - _ENCODER_SPECIALS - _DECODER_SPECIALS

    def draw(
        self, documents: tf.Tensor, sentence_ends: tf.Tensor, seeds: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Windows of all documents of a block: where they start, and their text lengths.

        A document's windows are consecutive from its start, while `shortest` tokens remain.

        Args:
          documents: int64 [d], tokens of each document.
          sentence_ends: increasing int64 [s], where the block's sentences end.
          seeds: two int [2] seeds.

        Returns:
          Starts in the block's tokens, int64 [windows], and lengths (encoder, decoder), int64
          [windows, 2]; by document.
        """
        ends = tf.cumsum(documents)
        # The n-th windows of all documents are drawn together; the first ones even if nothing
        # fits, as an empty TensorArray cannot be stacked.
        most = tf.reduce_max(tf.concat([documents, [self.shortest]], axis=0)) // self.shortest
        shape = tf.stack([most, tf.size(documents, tf.int64)])
        points = tf.random.stateless_uniform(shape, seeds[0], dtype=tf.float64)
        snaps = tf.random.stateless_uniform(
            tf.concat([shape, [2]], axis=0), seeds[1], dtype=tf.float64
        )
        snaps = snaps < self.sentence_end_probability

        def draw_next(
            number: tf.Tensor, begins: tf.Tensor, drawn: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            remaining = ends - begins
            encoder, decoder = self.pick(tf.maximum(remaining, self.shortest), points[number])
            if self.sentence_end_probability:
                least_encoder = self.min_length - _ENCODER_SPECIALS
                least_decoder = self.min_length - _DECODER_SPECIALS
                snap = snaps[number]
                encoder = _snap(begins, encoder, least_encoder, sentence_ends, snap[:, 0])
                decoder = _snap(begins + encoder, decoder, least_decoder, sentence_ends, snap[:, 1])
            fits = tf.cast(remaining >= self.shortest, tf.int64)
            lengths = tf.stack([encoder, decoder], axis=1) * fits[:, tf.newaxis]
            drawn = drawn.write(number, tf.concat([begins[:, tf.newaxis], lengths], axis=1))
            return number + 1, begins + tf.reduce_sum(lengths, axis=1), drawn

        _, _, drawn = tf.while_loop(
            lambda number, begins, _: (number == 0) | tf.reduce_any(ends - begins >= self.shortest),
            draw_next,
            (
                0,
                ends - documents,
                tf.TensorArray(tf.int64, size=0, dynamic_size=True, element_shape=[None, 3]),
            ),
        )
        windows = tf.reshape(tf.transpose(drawn.stack(), [1, 0, 2]), [-1, 3])
        windows = tf.boolean_mask(windows, windows[:, 1] > 0)
        return windows[:, 0], windows[:, 1:]

    def pick(self, remaining: tf.Tensor, points: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The pairs of text lengths (encoder, decoder) at `points` of all pairs that fit.

        All pairs within the bounds whose sum is at most `remaining` (int64 [d], each at least
        `shortest`) are equally likely for uniform `points`, float64 [d] in [0, 1).
        """
        least_decoder = self.min_length - _DECODER_SPECIALS
        encoder = tf.range(
            self.min_length - _ENCODER_SPECIALS,
            self.max_encoder - _ENCODER_SPECIALS + 1,
            dtype=tf.int64,
        )
        longest_decoder = tf.minimum(
            remaining[:, tf.newaxis] - encoder, self.max_decoder - _DECODER_SPECIALS
        )
        pairs = tf.maximum(longest_decoder - least_decoder + 1, 0)  # for each encoder length
        pairs_up_to = tf.cumsum(pairs, axis=1)
        pair = tf.cast(points * tf.cast(pairs_up_to[:, -1], tf.float64), tf.int64)[:, tf.newaxis]
        row = tf.searchsorted(pairs_up_to, pair, side="right")
        before = tf.gather(pairs_up_to - pairs, row, batch_dims=1)
        return tf.gather(encoder, row[:, 0]), least_decoder + (pair - before)[:, 0]


def _snap(
    begins: tf.Tensor, lengths: tf.Tensor, least: int, sentence_ends: tf.Tensor, wanted: tf.Tensor
) -> tf.Tensor:
    """Shortens texts [d] to a sentence end, where `wanted` [d] and `least` tokens remain."""
    within = tf.searchsorted(sentence_ends, begins + lengths, side="right")
    ends = tf.gather(tf.concat([[0], sentence_ends], axis=0), within)  # 0: none ends before
    return tf.where(wanted & (ends - begins >= least), ends - begins, lengths)


def _count_dropped(documents: tf.Tensor, starts: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Counts what the windows leave of the documents; returns `lengths` unchanged."""
    document = tf.searchsorted(tf.cumsum(documents), starts, side="right")
    used = tf.math.unsorted_segment_sum(
        tf.reduce_sum(lengths, axis=1), document, tf.size(documents)
    )
    tails = tf.boolean_mask(documents - used, used > 0)
    return count_drops(
        lengths,
        {
            "document_too_short": tf.math.count_nonzero(used == 0),
            "tail_too_short": tf.math.count_nonzero(tails),
            "tail_tokens": tf.reduce_sum(tails),
        },
    )


def cut_windows(
    tokens: tf.Tensor,
    documents: tf.Tensor,
    starts: tf.Tensor,
    lengths: tf.Tensor,
    *,
    vocabulary: PlugVocabulary,
    close_at_document_end_only: bool,
) -> dict[str, tf.RaggedTensor]:
    """Builds the features, int32 [windows, None], of windows.

    Takes a block's ids (int32 [t]), tokens of each document (int64 [d]), and the windows' starts
    (int64 [windows]) and text lengths (int64 [windows, 2]).
    """
    encoder_length, decoder_length = tf.unstack(lengths, axis=1)
    middle = starts + encoder_length
    ends = middle + decoder_length
    # Each side is slices of one pool: the tokens, then [CLS] and [SEP].
    pool = tf.concat([tokens, [vocabulary.cls_id, vocabulary.sep_id]], axis=0)
    cls = tf.fill(tf.shape(starts), tf.size(tokens, tf.int64))
    sep, one = cls + 1, tf.ones_like(cls)
    last = sep
    if close_at_document_end_only:
        at_end = tf.reduce_any(ends[:, tf.newaxis] == tf.cumsum(documents), axis=1)
        last = tf.where(at_end, sep, ends)

    def join(*slices: tuple[tf.Tensor, tf.Tensor]) -> tf.RaggedTensor:
        begins, sizes = zip(*slices, strict=True)
        return join_slices(pool, tf.stack(begins, axis=1), tf.stack(sizes, axis=1))

    encoder = join((cls, one), (starts, encoder_length), (sep, one))
    targets = join((middle, decoder_length), (last, one))
    return {
        "encoder_original_tokens": encoder,
        "encoder_token_types": tf.zeros_like(encoder),
        "decoder_input_tokens": join((cls, one), (middle, decoder_length)),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": tf.ones_like(targets),
    }
