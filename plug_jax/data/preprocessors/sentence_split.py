"""Splits Chinese text, possibly mixed with Latin, into sentences without losing a character."""

from __future__ import annotations

import tensorflow as tf

_STOPS = "。｡！？；…⋯!?;"
_CLOSERS = r"”’」』｣）》】〉〕］｝〗〙〞〟＂＇\"')\]}"
_COMMAS = "，、,､"
_SPACE = r"[\s\p{Z}]*"
_TEXT = rf"[^{_STOPS}\n]*"
# Runs of stops, each with its closing marks.
_STOP = rf"(?:[{_STOPS}]+[{_CLOSERS}]*)+"
# Spaces, text (a stop followed by a comma does not end it), then the end of the sentence: a stop or
# a line break, with the space that follows, or the end of the text.
_SENTENCE = rf"{_SPACE}{_TEXT}(?:{_STOP}[{_COMMAS}]{_TEXT})*(?:{_STOP}{_SPACE}|\n{_SPACE}|\z)"
_BOUNDARY = b"\xff"  # a byte that UTF-8 never uses


def split_sentences(texts: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    """The sentences of each text; joined, they give it back byte for byte.

    A sentence ends after a run of 。！？；… ! ? ; (or ｡ and ⋯) or with a line break. Closing quotes
    and brackets after the stop stay with the sentence, as does white space; leading white space
    belongs to the first sentence. A full stop "." does not end a sentence, so 3.5 is not split.

    So a quotation that ends in a stop ends the sentence at its closing quote, even if the speaker
    follows: “你好！”他说。 are two sentences. Only a comma (，、 or ASCII) continues it:
    “你好！”，他说。 is one. This is the rule of LTP's splitter and of common regular expressions. A
    quotation of ten sentences is split at each. ASCII quotes right after a stop count as closing.

    Example:
      ["他问：“好吗？”我说：“好！”，笑了……真的！", "\\n气温3.5度\\n降了", ""] ->
      [["他问：“好吗？”", "我说：“好！”，笑了……", "真的！"], ["\\n气温3.5度\\n", "降了"], []]

    Args:
      texts: strings [] or [d], valid UTF-8 (a byte 0xFF, invalid in UTF-8, would be lost).

    Returns:
      Strings [sentences] or ragged [d, sentences], none empty; no sentence for an empty text.
    """
    texts = tf.convert_to_tensor(texts)
    if texts.shape.rank == 0:
        return split_sentences(texts[tf.newaxis]).flat_values
    marked = tf.strings.regex_replace(texts, _SENTENCE, rb"\0" + _BOUNDARY)
    pieces = tf.strings.split(marked, _BOUNDARY)
    # The last piece of each text, after its last boundary, is empty; for an empty text, both.
    is_sentence = tf.not_equal(pieces.flat_values, "")
    sentences_before = tf.concat([[0], tf.cumsum(tf.cast(is_sentence, tf.int64))], axis=0)
    return tf.RaggedTensor.from_row_splits(
        tf.boolean_mask(pieces.flat_values, is_sentence),
        tf.gather(sentences_before, pieces.row_splits),
        validate=False,
    )
