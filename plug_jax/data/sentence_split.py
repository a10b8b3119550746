"""Cuts Chinese text, with Latin mixed in, into sentences without losing a character."""

from __future__ import annotations

import tensorflow as tf

_STOPS = "。！？；…!?;"
_CLOSERS = r"”’」』）》】〉〕］｝〗〙\"')\]}"
_SPACE = r"[\s\p{Z}]*"
# Spaces, text, then what ends the sentence: stops, each run with its closing marks, or a line
# break, in both cases with the space that follows; or the end of the text.
_SENTENCE = rf"{_SPACE}[^{_STOPS}\n]*(?:(?:[{_STOPS}]+[{_CLOSERS}]*)+{_SPACE}|\n{_SPACE}|\z)"
_BOUNDARY = b"\xff"  # a byte that UTF-8 never uses


def split_sentences(text: tf.Tensor) -> tf.Tensor:
    """The sentences of `text`; joined, they give it back byte for byte.

    A sentence ends after 。！？；… ! ? ; or a line break. Closing quotes and brackets stay with
    their sentence, and so does the white space after it; white space at the start of the text
    belongs to the first sentence. A full stop "." ends nothing: 3.5 stays whole.

    Example:
      "他问：“好吗？”我说……好！\\n气温3.5度" ->
      ["他问：“好吗？”", "我说……", "好！\\n", "气温3.5度"]

    Args:
      text: string scalar, valid UTF-8 (a byte 0xFF, which UTF-8 does not have, would be lost).

    Returns:
      String [sentences], none empty; no sentence for an empty text.
    """
    marked = tf.strings.regex_replace(text, _SENTENCE, rb"\0" + _BOUNDARY)
    sentences = tf.strings.split(marked, _BOUNDARY)
    return tf.boolean_mask(sentences, tf.not_equal(sentences, ""))
