"""Cleaning steps for documents before tokenisation: text is rewritten, bad text is dropped.

A step takes texts, tf.string [d] in valid UTF-8, and returns those it keeps, tf.string [d'], in
the same order. A rewriting step keeps every text, even one that becomes empty (which tokenisation
counts as "empty_document"), and counts changed texts under its name (`change_counts` in
`plug_jax.data.drops`). A selecting step changes no text, and counts those that it drops under its
reason (`drop_counts`).

Steps are configured with gin. Usual steps for Chinese corpora, in a sensible order:

    CLEANING = (
        @cleaning.ControlCharacters(),
        @cleaning.HalfWidth(),
        @cleaning.Simplified(),
        @cleaning.MinLength(),
        @cleaning.ChineseRatio(),
    )
    cleaning.MinLength.characters = 150

Deduplication is elsewhere: it takes more than one text at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from plug_jax.data.drops import count_changes, count_drops
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

_LINE_BREAKS = r"\r\n|[\r\x{85}\x{2028}\x{2029}]"
_SPACES = r"[\t\v\f\p{Zs}]"
# The last two code points of each plane are not characters.
_NONCHARACTERS = r"\x{FDD0}-\x{FDEF}" + "".join(
    rf"\x{{{plane:X}FFFE}}-\x{{{plane:X}FFFF}}" for plane in range(17)
)
_CONTROLS = rf"[\x00-\x09\x0B-\x1F\x7F-\x9F\p{{Cf}}\p{{Co}}\x{{FFFD}}{_NONCHARACTERS}]+"
_SPACE_CLASS = r"\s\v\x{85}\p{Z}"
_CHINESE_CLASS = r"\x{3007}\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{3FFFF}"
_WHITE_SPACE = rf"[{_SPACE_CLASS}]+"
_CHINESE_OR_WHITE_SPACE = rf"[{_SPACE_CLASS}{_CHINESE_CLASS}]+"

_FULL_WIDTH = r"[\x{3000}０-９Ａ-Ｚａ-ｚ]"
_FULL_MINUS_HALF = ord("０") - ord("0")  # the same for letters


@dataclasses.dataclass(frozen=True)
class UnicodeNFKC:
    """Normalises to NFKC: characters are replaced by their compatibility decompositions.

    Note that this turns full-width Chinese punctuation, such as ，！？：（）, into ASCII, and …
    into three full stops, so that sentences no longer end at an ellipsis. `HalfWidth` is the
    gentler choice for Chinese text. Changes are counted as "unicode_nfkc".

    Example: ["ＡＢＣ１２３，你好！", "①㎏", "天亮"] -> ["ABC123,你好!", "1kg", "天亮"]
    """

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d]."""
        return _count_rewritten("unicode_nfkc", texts, tf_text.normalize_utf8(texts, "NFKC"))


@dataclasses.dataclass(frozen=True)
class HalfWidth:
    """Turns full-width letters, digits and the ideographic space into ASCII.

    Full-width punctuation stays, as it is correct in Chinese. Changes are counted as
    "half_width".

    Example: ["ＡＢＣ　１２３，你好！", "天亮"] -> ["ABC 123，你好！", "天亮"]
    """

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d]."""
        # Few texts need changes, and checking is faster than splitting them.
        found = tf.strings.regex_full_match(texts, rf"(?s).*{_FULL_WIDTH}.*")
        codes = tf.strings.unicode_decode(tf.boolean_mask(texts, found), "UTF-8")
        codes = codes.with_flat_values(_half_width(codes.flat_values))
        rewritten = tf.strings.unicode_encode(codes, "UTF-8")
        rewritten = tf.tensor_scatter_nd_update(texts, tf.where(found), rewritten)
        return _count_rewritten("half_width", texts, rewritten)


@dataclasses.dataclass(frozen=True)
class ControlCharacters:
    """Removes non-text characters, and turns all white space into spaces or line feeds.

    Line separators (CR LF, CR, U+0085, U+2028, U+2029) become line feeds; tabs, form feeds and all
    other spaces, including the ideographic one, become spaces. (From the lines of text files a CR
    is already gone, see `TextSource`.) Removed are control and format characters (zero width, byte
    order marks, direction marks, soft hyphens), private-use characters, noncharacters (such as
    U+FFFF) and the replacement character U+FFFD. So emoji joined by U+200D are split. Unassigned
    code points stay. Runs of spaces are not shortened. Changes are counted as "control_characters".

    Example: ["a\\tb\\r\\n\\u200bc", "天亮"] -> ["a b\\nc", "天亮"]
    """

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d]."""
        cleaned = texts
        for pattern, by in ((_LINE_BREAKS, "\n"), (_SPACES, " "), (_CONTROLS, "")):
            cleaned = tf.strings.regex_replace(cleaned, pattern, by)
        return _count_rewritten("control_characters", texts, cleaned)


@dataclasses.dataclass(frozen=True)
class Simplified:
    """Converts traditional to simplified Chinese, by phrase and character, with OpenCC's "t2s".

    Changes are counted as "simplified".

    Example: ["頭髮乾了", "乾坤", "天亮"] -> ["头发干了", "乾坤", "天亮"]

    Raises:
      PlugError: OpenCC is not installed.
    """

    def __post_init__(self) -> None:
        _converter()

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d]."""
        simplified = tf.numpy_function(_simplify, [texts], tf.string, stateful=False)
        return _count_rewritten("simplified", texts, tf.ensure_shape(simplified, texts.shape))


@dataclasses.dataclass(frozen=True)
class MinLength:
    """Drops texts with fewer than `characters` characters, not counting white space.

    They are counted as "too_short_text".

    Example, with `characters` = 3: ["天 亮", "天亮了", ""] -> ["天亮了"]

    Raises:
      PlugError: `characters` is negative.
    """

    characters: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        if self.characters < 0:
            raise PlugError(f"MinLength.characters must be 0 or more, not {self.characters}.")

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d'], d' <= d."""
        long_enough = _count_characters(texts, ignore=_WHITE_SPACE) >= self.characters
        return _select(texts, long_enough, "too_short_text")


@dataclasses.dataclass(frozen=True)
class ChineseRatio:
    """Drops texts with too few Chinese characters among their characters other than white space.

    Chinese characters are ideographs: U+3400 to U+4DBF, U+4E00 to U+9FFF, U+F900 to U+FAFF, all of
    planes 2 and 3 (U+20000 to U+3FFFF), and 〇 (U+3007). Japanese and Korean ideographs are the
    same characters; punctuation, kana and bopomofo do not count. The ratio of an empty text is 0.
    Drops are counted as "too_little_chinese". The default is that of PanGu-α's corpus (Zeng et al.
    2021), which also had a minimum length of 150 characters.

    Example, with `minimum` = 0.5: ["天亮 ok", "天 okay", "！"] -> ["天亮 ok"]

    Raises:
      PlugError: `minimum` is not in [0, 1].
    """

    minimum: float = 0.6

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.minimum <= 1:
            raise PlugError(f"ChineseRatio.minimum must be between 0 and 1, not {self.minimum}.")

    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Texts tf.string [d] to tf.string [d'], d' <= d."""
        characters = _count_characters(texts, ignore=_WHITE_SPACE)
        others = _count_characters(texts, ignore=_CHINESE_OR_WHITE_SPACE)
        # Divide, not multiply: 11 of 20 is 0.55, but 0.55 * 20 is more than 11.
        ratio = tf.math.divide_no_nan(
            tf.cast(characters - others, tf.float64), tf.cast(characters, tf.float64)
        )
        return _select(texts, ratio >= self.minimum, "too_little_chinese")


def _half_width(codes: tf.Tensor) -> tf.Tensor:
    """Code points int32 [n] to half width."""
    is_shifted = functools.reduce(
        tf.logical_or,
        [(codes >= ord(first)) & (codes <= ord(last)) for first, last in ("０９", "ＡＺ", "ａｚ")],
    )
    codes = tf.where(is_shifted, codes - _FULL_MINUS_HALF, codes)
    return tf.where(codes == ord("\u3000"), ord(" "), codes)


@functools.cache
def _converter() -> Any:
    """OpenCC's converter, one per process as it cannot be pickled."""
    try:
        import opencc
    except ImportError as error:
        raise PlugError(
            "cleaning.Simplified needs OpenCC: run pip install 'plug-jax[clean]', or leave the "
            "step out."
        ) from error
    return opencc.OpenCC("t2s")


def _simplify(texts: np.ndarray) -> np.ndarray:
    """Simplifies texts, object [d] of bytes; runs in Python."""
    simplified = np.empty(texts.shape, object)  # a bytes array would lose NULs at the end
    simplified[:] = [_converter().convert(text.decode()).encode() for text in texts]
    return simplified


def _count_characters(texts: tf.Tensor, *, ignore: str) -> tf.Tensor:
    """Number of Unicode characters in each text that do not match the pattern, int32 [d]."""
    return tf.strings.length(tf.strings.regex_replace(texts, ignore, ""), "UTF8_CHAR")


def _count_rewritten(step: str, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
    return count_changes(after, {step: tf.math.count_nonzero(before != after)})


def _select(texts: tf.Tensor, keep: tf.Tensor, reason: str) -> tf.Tensor:
    kept = tf.boolean_mask(texts, keep)
    return count_drops(kept, {reason: tf.math.count_nonzero(~keep)})
