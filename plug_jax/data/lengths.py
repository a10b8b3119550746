"""Stage 2 examples: windows of text, one part for the encoder and the next for the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import seqio
import tensorflow as tf

from plug_jax.data.drops import count_drops
from plug_jax.data.sentence_split import split_sentences
from plug_jax.errors import PlugError

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

_ENCODER_SPECIALS = 2  # [CLS] text [SEP]
_DECODER_SPECIALS = 1  # [CLS] text in the inputs, text [SEP] in the targets


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
    counts one of them. Each is uniform on [`min_length`, `max_length`], on its own (PLUG's second
    stage); where less text remains than the longest window takes, the pair (e, d) is uniform over
    all pairs that fit. Windows follow each other until the document is used up. What is too short
    for a window is dropped and counted: "document_too_short" for a whole document, otherwise
    "tail_too_short" and, for its tokens, "tail_tokens". Seeded by `seqio.map_seed_manager`.

    Example, with one id a character and min_length = max_length = 4: "天亮了下雨我走了" makes one
    window and leaves a tail of three tokens.

        encoder_original_tokens   [CLS] 天 亮 [SEP]
        encoder_token_types       [0,   0, 0, 0]
        decoder_input_tokens      [CLS] 了 下 雨
        decoder_target_tokens     了 下 雨 [SEP]
        decoder_loss_weights      [1, 1, 1, 1]

    Args:
      dataset: {"text": string scalar, a document}; other features are left out.
      sequence_length: its "encoder_input_tokens" and "decoder_target_tokens", if given, bound the
        encoder's and the decoder's longest length too.
      vocabulary: encodes each document as a whole, or by sentence if windows may end with one.
      min_length: the shortest e and d, at least 3.
      max_length: the longest e and d.
      close_at_document_end_only: the decoder's targets end with [SEP] only at the end of the
        document, and elsewhere with the token that the next window begins with.
      sentence_end_probability: how often the encoder's text is cut back to the last end of a
        sentence that leaves it `min_length`, if there is one; and, by a draw of its own, the
        decoder's.

    Returns:
      The windows: two int32 [e] and three int32 [d] features.

    Raises:
      PlugError: lengths that leave no room, or a probability outside of [0, 1].
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

    def windows_of_document(
        document: Mapping[str, tf.Tensor], seeds: Sequence[tf.Tensor]
    ) -> dict[str, tf.RaggedTensor]:
        if sentence_end_probability:
            sentences = vocabulary.encode_tf(split_sentences(document["text"]))
            tokens, sentence_ends = sentences.flat_values, sentences.row_limits()
        else:
            tokens = vocabulary.encode_tf(document["text"])
            sentence_ends = tf.zeros([0], tf.int64)
        lengths = sampler.draw(tf.size(tokens, tf.int64), sentence_ends, seeds)
        lengths = _count_dropped(lengths, tokens, sampler.shortest)
        return cut_windows(
            tokens, lengths, vocabulary, close_at_document_end_only=close_at_document_end_only
        )

    return seqio.map_over_dataset(windows_of_document, num_seeds=2)(dataset).unbatch()


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
        self, num_tokens: tf.Tensor, sentence_ends: tf.Tensor, seeds: Sequence[tf.Tensor]
    ) -> tf.Tensor:
        """Text lengths (encoder, decoder) of consecutive windows, int64 [windows, 2].

        Windows begin with the document and go on while `shortest` tokens remain.

        Args:
          num_tokens: int64 scalar, tokens of the document.
          sentence_ends: increasing int64 [s], where sentences end; unused at probability 0.
          seeds: two int [2] seeds.
        """
        most = num_tokens // self.shortest  # windows
        points = tf.random.stateless_uniform([most], seeds[0], dtype=tf.float64)
        snaps = tf.random.stateless_uniform([most, 2], seeds[1], dtype=tf.float64)
        snaps = snaps < self.sentence_end_probability

        def draw_window(
            window: tf.Tensor, begin: tf.Tensor, drawn: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            encoder, decoder = self.pick(num_tokens - begin, points[window])
            if self.sentence_end_probability:
                least_encoder = self.min_length - _ENCODER_SPECIALS
                least_decoder = self.min_length - _DECODER_SPECIALS
                snap = snaps[window]
                encoder = _snap(begin, encoder, least_encoder, sentence_ends, snap[0])
                decoder = _snap(begin + encoder, decoder, least_decoder, sentence_ends, snap[1])
            lengths = tf.stack([encoder, decoder])
            return window + 1, begin + encoder + decoder, drawn.write(window, lengths)

        _, _, drawn = tf.while_loop(
            lambda _, begin, __: num_tokens - begin >= self.shortest,
            draw_window,
            (
                0,
                tf.zeros([], tf.int64),
                tf.TensorArray(tf.int64, size=0, dynamic_size=True, element_shape=[2]),
            ),
        )
        return tf.reshape(drawn.stack(), [-1, 2])

    def pick(self, remaining: tf.Tensor, point: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The pair of text lengths (encoder, decoder) at `point` of all pairs that fit.

        All pairs within the bounds whose sum is at most `remaining` (int64 scalar, at least
        `shortest`) are equally likely for a uniform `point`, float64 scalar in [0, 1).
        """
        least_decoder = self.min_length - _DECODER_SPECIALS
        encoder = tf.range(
            self.min_length - _ENCODER_SPECIALS,
            self.max_encoder - _ENCODER_SPECIALS + 1,
            dtype=tf.int64,
        )
        longest_decoder = tf.minimum(remaining - encoder, self.max_decoder - _DECODER_SPECIALS)
        pairs = tf.maximum(longest_decoder - least_decoder + 1, 0)  # for each encoder length
        pairs_up_to = tf.cumsum(pairs)
        pair = tf.cast(point * tf.cast(pairs_up_to[-1], tf.float64), tf.int64)
        row = tf.searchsorted(pairs_up_to, pair[tf.newaxis], side="right")[0]
        return encoder[row], least_decoder + pair - (pairs_up_to[row] - pairs[row])


def _snap(
    begin: tf.Tensor, length: tf.Tensor, least: int, sentence_ends: tf.Tensor, wanted: tf.Tensor
) -> tf.Tensor:
    """Shortens the text at `begin` to end with a sentence, if `wanted` and `least` tokens stay."""
    within = tf.searchsorted(sentence_ends, (begin + length)[tf.newaxis], side="right")[0]
    end = tf.concat([[0], sentence_ends], axis=0)[within]  # 0: no sentence ends before
    return tf.where(wanted & (end - begin >= least), end - begin, length)


def _count_dropped(lengths: tf.Tensor, tokens: tf.Tensor, shortest: int) -> tf.Tensor:
    """Counts what the windows of `lengths` leave of `tokens`; returns `lengths`."""
    left = tf.size(tokens, tf.int64) - tf.reduce_sum(lengths)
    whole = tf.equal(tf.shape(lengths)[0], 0)
    tail = tf.where(whole, tf.zeros_like(left), left)
    return count_drops(
        lengths,
        {
            "document_too_short": tf.cast(whole, tf.int64),
            "tail_too_short": tf.cast(tail > 0, tf.int64),
            "tail_tokens": tail,
        },
    )


def cut_windows(
    tokens: tf.Tensor,
    lengths: tf.Tensor,
    vocabulary: PlugVocabulary,
    *,
    close_at_document_end_only: bool,
) -> dict[str, tf.RaggedTensor]:
    """Builds the features, int32 [windows, None], of consecutive windows.

    Takes a document's ids (int32 [n]) and the text lengths of its windows (int64 [windows, 2]).
    """
    ends = tf.cumsum(tf.reshape(lengths, [-1]))
    used = tf.reduce_sum(lengths)
    texts = tf.RaggedTensor.from_row_lengths(
        tokens[:used], tf.reshape(lengths, [-1]), validate=False
    )
    encoder_text, decoder_text = texts[::2], texts[1::2]
    cls = tf.fill([tf.shape(lengths)[0], 1], vocabulary.cls_id)
    sep = tf.fill(tf.shape(cls), vocabulary.sep_id)
    last = sep
    if close_at_document_end_only:
        last = tf.gather(tf.concat([tokens, [vocabulary.sep_id]], axis=0), ends[1::2])
        last = last[:, tf.newaxis]
    encoder = tf.concat([cls, encoder_text, sep], axis=1)
    targets = tf.concat([decoder_text, last], axis=1)
    return {
        "encoder_original_tokens": encoder,
        "encoder_token_types": tf.zeros_like(encoder),
        "decoder_input_tokens": tf.concat([cls, decoder_text], axis=1),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": tf.ones_like(targets),
    }
