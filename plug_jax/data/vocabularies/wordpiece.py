"""BERT's WordPiece as TensorFlow ops: clean-up of text, words, and pieces.

The ids equal those of Hugging Face's `BertTokenizer` with its defaults, which PLUG's released
weights are used with. Its character classes are those of Unicode 8 and, where the Rust code
deviates, its own; they are spelt out here, so that a new release of TensorFlow or of Unicode does
not change ids.
"""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import tensorflow as tf
import tensorflow_text as tf_text

# Longer words are [UNK].
_MAX_WORD_CHARACTERS = 100
_MAX_CHARACTER_BYTES = 4

# Ranges of code points, in hexadecimal. Removed: control, format, private-use characters, U+FFFD.
_CONTROLS = (
    "0000-0008 000B-000C 000E-001F 007F-009F 00AD 0600-0605 061C 06DD 070F 180E 200B-200F "
    "202A-202E 2060-2064 2066-206F E000-F8FF FEFF FFF9-FFFB FFFD 110BD 1BCA0-1BCA3 1D173-1D17A "
    "E0001 E0020-E007F F0000-FFFFD 100000-10FFFD"
)
# Removed after decomposition: nonspacing marks.
_ACCENTS = (
    "0300-036F 0483-0487 0591-05BD 05BF 05C1-05C2 05C4-05C5 05C7 0610-061A 064B-065F 0670 "
    "06D6-06DC 06DF-06E4 06E7-06E8 06EA-06ED 0711 0730-074A 07A6-07B0 07EB-07F3 0816-0819 "
    "081B-0823 0825-0827 0829-082D 0859-085B 08E3-0902 093A 093C 0941-0948 094D 0951-0957 "
    "0962-0963 0981 09BC 09C1-09C4 09CD 09E2-09E3 0A01-0A02 0A3C 0A41-0A42 0A47-0A48 0A4B-0A4D "
    "0A51 0A70-0A71 0A75 0A81-0A82 0ABC 0AC1-0AC5 0AC7-0AC8 0ACD 0AE2-0AE3 0B01 0B3C 0B3F "
    "0B41-0B44 0B4D 0B56 0B62-0B63 0B82 0BC0 0BCD 0C00 0C3E-0C40 0C46-0C48 0C4A-0C4D 0C55-0C56 "
    "0C62-0C63 0C81 0CBC 0CBF 0CC6 0CCC-0CCD 0CE2-0CE3 0D01 0D41-0D44 0D4D 0D62-0D63 0DCA "
    "0DD2-0DD4 0DD6 0E31 0E34-0E3A 0E47-0E4E 0EB1 0EB4-0EB9 0EBB-0EBC 0EC8-0ECD 0F18-0F19 0F35 "
    "0F37 0F39 0F71-0F7E 0F80-0F84 0F86-0F87 0F8D-0F97 0F99-0FBC 0FC6 102D-1030 1032-1037 "
    "1039-103A 103D-103E 1058-1059 105E-1060 1071-1074 1082 1085-1086 108D 109D 135D-135F "
    "1712-1714 1732-1734 1752-1753 1772-1773 17B4-17B5 17B7-17BD 17C6 17C9-17D3 17DD 180B-180D "
    "18A9 1920-1922 1927-1928 1932 1939-193B 1A17-1A18 1A1B 1A56 1A58-1A5E 1A60 1A62 1A65-1A6C "
    "1A73-1A7C 1A7F 1AB0-1ABD 1B00-1B03 1B34 1B36-1B3A 1B3C 1B42 1B6B-1B73 1B80-1B81 1BA2-1BA5 "
    "1BA8-1BA9 1BAB-1BAD 1BE6 1BE8-1BE9 1BED 1BEF-1BF1 1C2C-1C33 1C36-1C37 1CD0-1CD2 1CD4-1CE0 "
    "1CE2-1CE8 1CED 1CF4 1CF8-1CF9 1DC0-1DF5 1DFC-1DFF 20D0-20DC 20E1 20E5-20F0 2CEF-2CF1 2D7F "
    "2DE0-2DFF 302A-302D 3099-309A A66F A674-A67D A69E-A69F A6F0-A6F1 A802 A806 A80B A825-A826 "
    "A8C4 A8E0-A8F1 A926-A92D A947-A951 A980-A982 A9B3 A9B6-A9B9 A9BC A9E5 AA29-AA2E AA31-AA32 "
    "AA35-AA36 AA43 AA4C AA7C AAB0 AAB2-AAB4 AAB7-AAB8 AABE-AABF AAC1 AAEC-AAED AAF6 ABE5 ABE8 "
    "ABED FB1E FE00-FE0F FE20-FE2F 101FD 102E0 10376-1037A 10A01-10A03 10A05-10A06 10A0C-10A0F "
    "10A38-10A3A 10A3F 10AE5-10AE6 11001 11038-11046 1107F-11081 110B3-110B6 110B9-110BA "
    "11100-11102 11127-1112B 1112D-11134 11173 11180-11181 111B6-111BE 111CA-111CC 1122F-11231 "
    "11234 11236-11237 112DF 112E3-112EA 11300-11301 1133C 11340 11366-1136C 11370-11374 "
    "114B3-114B8 114BA 114BF-114C0 114C2-114C3 115B2-115B5 115BC-115BD 115BF-115C0 115DC-115DD "
    "11633-1163A 1163D 1163F-11640 116AB 116AD 116B0-116B5 116B7 1171D-1171F 11722-11725 "
    "11727-1172B 16AF0-16AF4 16B30-16B36 16F8F-16F92 1BC9D-1BC9E 1D167-1D169 1D17B-1D182 "
    "1D185-1D18B 1D1AA-1D1AD 1D242-1D244 1DA00-1DA36 1DA3B-1DA6C 1DA75 1DA84 1DA9B-1DA9F "
    "1DAA1-1DAAF 1E8D0-1E8D6 E0100-E01EF"
)
# Letters to BERT, though newer releases of Unicode (or, for U+2B820, its own range) say otherwise.
_JOINED = (
    "061D 09FD 0A76 0C77 0C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 10D6E 10EAD 10F55-10F59 "
    "10F86-10F89 113D4-113D5 113D7-113D8 1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B "
    "11944-11946 119E2 11A3F-11A46 11A9A-11A9C 11A9E-11AA2 11B00-11B09 11BE1 11C41-11C45 "
    "11C70-11C71 11EF7-11EF8 11F43-11F4F 11FFF 12FF1-12FF2 16D6D-16D6F 16E97-16E9A 16FE2 1E5FF "
    "1E95E-1E95F 2B820-2B91F"
)


@dataclasses.dataclass(frozen=True)
class TextRules:
    """Text normalisation, by the names of `BertTokenizer`; PLUG's are the defaults."""

    do_lower_case: bool = True
    strip_accents: bool = True
    tokenize_chinese_chars: bool = True  # each is a word


def _ranges(table: str) -> list[tuple[int, int]]:
    pairs = (entry.split("-") for entry in table.split())
    return [(int(pair[0], 16), int(pair[-1], 16)) for pair in pairs]


def joined_characters() -> frozenset[str]:
    """Characters that BERT treats as letters although today's Unicode does not."""
    return frozenset(chr(i) for first, last in _ranges(_JOINED) for i in range(first, last + 1))


def _class(table: str) -> str:
    """The content of an RE2 character class."""
    return "".join(rf"\x{{{first:X}}}-\x{{{last:X}}}" for first, last in _ranges(table))


# Characters that are words by themselves, except `_JOINED`: ASCII symbols, punctuation, ideographs.
_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}" + _class("166D 111C9")
_IDEOGRAPHS = "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B820-2CEAF 2F800-2FA1F"
_ALONE = _PUNCTUATION + _class(_IDEOGRAPHS)
# Punctuation for BERT, but not for the tokenizer's own splitting.
_PADDED = r"[\x{166D}\x{111C9}]"
# RE2 cannot count characters outside `_ALONE`: too many states. So first a run that may be a long
# word is searched for; in the few texts with one, words are then separated by spaces.
_LONG_RUN = (
    r"(?s).*[^\t\n\r -/:-@\[-`{-~\x{3000}-\x{3003}\x{4E00}-\x{9FFF}\x{FF0C}]"
    rf"{{{_MAX_WORD_CHARACTERS + 1}}}.*"
)
_LONG_WORD = rf"[^\t\n\r ]{{{_MAX_WORD_CHARACTERS + 1},}}"

# Texts that the clean-up would not change (except ASCII case), like nearly all Chinese text:
# characters that end a word, and at most 100 others between two of them.
_PLAIN_BREAK = (
    r"[\t\n\r -/:-@\[-`{-~"
    + _class(
        "00A0 00A7 00B7 2010-2027 2030-2038 203B 3000-3003 3008-3011 3014-301F 4E00-9FFF "
        "FF01-FF03 FF05-FF0A FF0C-FF0F FF1A-FF1B FF1F-FF20"
    )
    + "]"
)
_PLAIN_OTHER = "0-9a-z" + _class(
    "00B0-00B1 00D7 00F7 03B1-03C9 0430-0438 043A-044F 20AC 2103 2122 2150-215F 2170-217F "
    "2208 220F 2211 221A 221E 2236 2248 2264-2265 "
    "2190-2199 2460-24B5 2500-27BF 3005-3007 FF04 FF0B FF10-FF19 FF1C-FF1E FF41-FF5A FFE5 "
    "1F300-1F64F"
)
# Characters whose lower case in ICU depends on the word, and on the assumed language.
_SIGMA = {"Σ": "σ"}
_DOTTED = {"İ": "i\u0307", "Ì": "ì", "Í": "í", "Ĩ": "ĩ", "Į": "į"}


def clean(strings: tf.Tensor, rules: TextRules = TextRules()) -> tf.Tensor:
    """Removes control characters and accents, lower-cases: tf.string [s].

    `\\t`, `\\n`, `\\r` and every Unicode space stay. Example: "Ça\\u200b，İ" -> "ca，i".
    """
    return _folded(_decomposed(strings, rules), rules)


def _decomposed(strings: tf.Tensor, rules: TextRules) -> tf.Tensor:
    """Without control characters, with accents decomposed."""
    strings = tf.strings.regex_replace(strings, f"[{_class(_CONTROLS)}]", "")
    return tf_text.normalize_utf8(strings, "NFD") if rules.strip_accents else strings


def _folded(strings: tf.Tensor, rules: TextRules) -> tf.Tensor:
    """Without accents, in lower case."""
    if rules.strip_accents:
        strings = tf.strings.regex_replace(strings, f"[{_class(_ACCENTS)}]", "")
    if rules.do_lower_case:
        strings = tf.strings.lower(strings)  # ASCII only: in ICU, I can become ı
        for upper, lower in (_SIGMA if rules.strip_accents else _SIGMA | _DOTTED).items():
            strings = tf.strings.regex_replace(strings, upper, lower)
        strings = tf.strings.lower(strings, encoding="utf-8")
    return strings


def split_words(strings: tf.Tensor) -> tf.RaggedTensor:
    """The words of cleaned texts, as split by `WordPieces`: tf.string [s] to [s, None].

    Only approximate for the rare characters of `_JOINED`, which end a word here. Example:
    "ab，3天" -> ["ab", "，", "3", "天"].
    """
    return tf.strings.split(tf.strings.regex_replace(strings, f"[{_ALONE}]", r" \0 "))


class PlacedWords:
    """The words that `WordPieces` splits, as source positions of their characters.

    The result for a character comes from the same operations that clean the texts, once per
    character. Only the order of accents depends on a character's neighbours.
    """

    def __init__(self, rules: TextRules = TextRules()) -> None:
        self._rules = rules
        self._parts: dict[str, str] = {}  # decomposition of a character
        self._letters: dict[str, str] = {}  # result for a part, "" if removed
        self._kinds: dict[str, str] = {}  # a letter's: _SPACE, _STANDS_ALONE or _JOINS

    def __call__(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """For each word of each text, the source positions of the cleaned word's characters.

        Example: "ab，Ça" -> [[0, 1], [2], [3, 4]].
        """
        self._learn(set().union(*texts))
        return map(self._words, texts)

    def _words(self, text: str) -> list[list[int]]:
        parts = [(part, place) for place, c in enumerate(text) for part in self._parts[c]]
        if self._rules.strip_accents:
            parts = _in_canonical_order(parts)
        words: list[list[int]] = []
        joins = False
        for part, place in parts:
            for letter in self._letters[part]:
                kind = self._kinds[letter]
                if kind == _JOINS and joins:
                    words[-1].append(place)
                elif kind != _SPACE:
                    words.append([place])
                joins = kind == _JOINS
        return words

    def _learn(self, characters: Iterable[str]) -> None:
        """Look up new characters."""
        new = _missing(characters, self._parts)
        if not new:
            return
        with tf.init_scope():
            parts = _each(lambda s: _decomposed(s, self._rules), new)
            letters = _each(
                lambda s: _folded(s, self._rules), _missing("".join(parts.values()), self._letters)
            )
            kinds = _kinds(_missing("".join(letters.values()), self._kinds), self._rules)
        # In this order: another thread may rely on everything for characters in `_parts`.
        self._kinds |= kinds
        self._letters |= letters
        self._parts |= parts


_SPACE, _STANDS_ALONE, _JOINS = "space", "alone", "joins"


def _missing(characters: Iterable[str], known: dict[str, str]) -> list[str]:
    return [character for character in dict.fromkeys(characters) if character not in known]


def _each(change: Callable[[tf.Tensor], tf.Tensor], characters: Sequence[str]) -> dict[str, str]:
    """`change` of each character."""
    changed = change(_strings(characters)).numpy()
    return {c: text.decode() for c, text in zip(characters, changed, strict=True)}


def _kinds(letters: Sequence[str], rules: TextRules) -> dict[str, str]:
    """Whether each letter separates words, is a word, or joins its neighbours."""
    single = _ALONE if rules.tokenize_chinese_chars else _PUNCTUATION
    spaces = tf.strings.regex_full_match(_strings(letters), r"[\t\n\r\p{Z}]").numpy()
    alones = tf.strings.regex_full_match(_strings(letters), f"[{single}]").numpy()
    joined = joined_characters()
    return {
        letter: _SPACE if space else _STANDS_ALONE if alone and letter not in joined else _JOINS
        for letter, space, alone in zip(letters, spaces, alones, strict=True)
    }


def _strings(characters: Sequence[str]) -> tf.Tensor:
    return tf.constant([character.encode() for character in characters], tf.string)


def _in_canonical_order(parts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Consecutive accents sorted by combining class, as in Unicode's NFD."""
    ordered: list[tuple[str, int]] = []
    for is_accent, run in itertools.groupby(parts, lambda part: _class_of(part) > 0):
        if is_accent:
            ordered += sorted(run, key=_class_of)
        else:
            ordered += run
    return ordered


def _class_of(part: tuple[str, int]) -> int:
    return unicodedata.combining(part[0])


class WordPieces:
    """Ids of texts: a callable from tf.string [s], valid UTF-8, to ragged int32 [s, None].

    Example, with the pieces [PAD], [UNK], 天, play, ##ed: "Played天靐" -> [3, 4, 2, 1].
    """

    def __init__(self, pieces: Sequence[str], unknown: str, rules: TextRules = TextRules()) -> None:
        """Builds the tables, eagerly even while a graph is built.

        Args:
          pieces: the vocabulary, in the order of the ids.
          unknown: the piece for words that cannot be cut into pieces.
          rules: how text becomes words.
        """
        self._rules = rules
        other = _PLAIN_OTHER if rules.do_lower_case else f"A-Z{_PLAIN_OTHER}"
        run = f"[{other}]{{0,{_MAX_WORD_CHARACTERS}}}"
        self._plain = f"(?:{run}{_PLAIN_BREAK})*{run}"
        # Letters for BERT at which the tokenizer would split: both it and the texts get private-use
        # characters instead, which `clean` has removed from all texts.
        used = {char for piece in pieces for char in piece}
        free = (char for char in map(chr, range(0xF0000, 0x10FFFE)) if char not in used)
        self._stand_ins = {char: next(free) for char in sorted(joined_characters() & used)}
        self._unknown_stand_in = next(free)
        table = str.maketrans(self._stand_ins)
        with tf.init_scope():
            self._tokenizer = tf_text.FastWordpieceTokenizer(
                vocab=[piece.translate(table) for piece in pieces],
                token_out_type=tf.int32,
                unknown_token=unknown,
                no_pretokenization=not rules.tokenize_chinese_chars,
                max_bytes_per_word=_MAX_WORD_CHARACTERS * _MAX_CHARACTER_BYTES,
            )

    def __call__(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """See the class."""
        if not self._rules.tokenize_chinese_chars:
            return self._pieces_of_words(self._prepare(strings))
        if self._rules.do_lower_case:
            strings = tf.strings.lower(strings)  # ASCII only: fast
        is_plain = tf.strings.regex_full_match(strings, self._plain)
        return self._tokenizer.tokenize(_update(strings, ~is_plain, self._prepare_to_split))

    def _prepare(self, strings: tf.Tensor) -> tf.Tensor:
        """Cleans texts and marks letters that TensorFlow would treat as punctuation."""
        strings = clean(strings, self._rules)
        for char, stand_in in self._stand_ins.items():
            strings = tf.strings.regex_replace(strings, char, stand_in)
        return tf.strings.regex_replace(strings, f"[{_class(_JOINED)}]", self._unknown_stand_in)

    def _prepare_to_split(self, strings: tf.Tensor) -> tf.Tensor:
        """Cleans texts and marks all that the tokenizer would split differently from BERT."""
        strings = tf.strings.regex_replace(self._prepare(strings), _PADDED, r" \0 ")
        return _update(strings, tf.strings.regex_full_match(strings, _LONG_RUN), _lengthen)

    def _pieces_of_words(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """For unsplit Chinese, where the tokenizer cannot find the words itself."""
        strings = tf.strings.regex_replace(strings, f"[{_PUNCTUATION}]", r" \0 ")
        words = tf.strings.split(tf.strings.regex_replace(strings, r"\p{Z}", " "))
        too_long = tf.strings.length(words.flat_values, "UTF8_CHAR") > _MAX_WORD_CHARACTERS
        flat = tf.where(too_long, self._unknown_stand_in, words.flat_values)
        return self._tokenizer.tokenize(words.with_flat_values(flat)).merge_dims(1, 2)


def _update(
    strings: tf.Tensor, where: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """`strings` with those selected by `where` changed: tf.string [s], tf.bool [s]."""
    indices = tf.where(where)
    return tf.tensor_scatter_nd_update(strings, indices, change(tf.gather_nd(strings, indices)))


def _lengthen(strings: tf.Tensor) -> tf.Tensor:
    """Lengthens words above BERT's limit beyond the tokenizer's, which counts bytes."""
    strings = tf.strings.regex_replace(strings, f"[{_ALONE}]", r" \0 ")
    strings = tf.strings.regex_replace(strings, r"\p{Z}", " ")
    return tf.strings.regex_replace(strings, _LONG_WORD, r"\0" * _MAX_CHARACTER_BYTES)
