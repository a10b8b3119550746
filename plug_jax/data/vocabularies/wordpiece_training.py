"""WordPiece vocabularies for Chinese: every common character, and pieces learned from text."""

from __future__ import annotations

import itertools
import os
import string
from collections import Counter
from collections.abc import Iterable

import tensorflow as tf
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from plug_jax.data.vocabularies.output_files import WORDPIECE, output_path, write_files
from plug_jax.data.vocabularies.tokenizer_files import SETTINGS, tokenizer_config
from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.data.vocabularies.wordpiece import TextRules, clean, split_words
from plug_jax.errors import PlugError

# The size of BERT's and PLUG's released Chinese vocabularies.
DEFAULT_SIZE = 21_128

# Unicode 1's unified ideographs, which include GB 2312, GBK and Big5.
_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH = 0x4E00, 0x9FA5
_WORD_CHARACTERS = string.digits + string.ascii_lowercase
_CHINESE_PUNCTUATION = (
    "，。、；：？！…—·‘’“”（）《》〈〉「」『』【】〔〕〖〗－％／．＂＇＆＃＊＠＿［］｛｝＼"
)
# Letters for BERT: "5℃" is one word, but "五℃" two.
_CHINESE_LETTERS = "〇々～￥＋＝＜＞｜℃°×０１２３４５６７８９"
_CONTINUED = "〇～℃°×０１２３４５６７８９"
_SYMBOLS = "•※′″§€£±÷→←↑↓■□▲●○★☆◆"

# Counts kept of words and of rare characters; the least frequent are dropped at twice as many.
_MAX_COUNTED = 1_000_000
# More would take the learner minutes, and these already cover 99% of a corpus' words.
_MAX_LEARNT_FROM = 100_000
_MAX_WORD_LENGTH = 30
_MIN_COUNT = 10
# At most this part of the free space goes to single characters: rare ideographs, foreign letters.
_CHARACTER_SHARE = 4


def base_pieces() -> list[str]:
    """The first pieces of every vocabulary made here.

    In this order: [PAD], [UNK], [CLS], [SEP], [MASK] (ids 0 to 4); ASCII's symbols, digits and
    lower-case letters; digits and letters after "##"; Chinese punctuation; full-width digits and
    signs, and some of them after "##"; symbols; the 20,902 ideographs U+4E00 to U+9FA5.
    """
    ascii_symbols = sorted(string.punctuation)
    continued = [f"##{char}" for char in _WORD_CHARACTERS + _CONTINUED]
    ideographs = map(chr, range(_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH + 1))
    singles = [
        *ascii_symbols,
        *_WORD_CHARACTERS,
        *_CHINESE_PUNCTUATION,
        *_CHINESE_LETTERS,
        *_SYMBOLS,
    ]
    return [*SPECIAL_PIECES, *singles, *continued, *ideographs]


def default_pieces() -> list[str]:
    """The 21,128 pieces of `default_vocabulary`: `base_pieces` and [unused1], [unused2] and so on.

    The latter leave room for your own pieces.
    """
    return _filled(base_pieces(), DEFAULT_SIZE)


def write_default_wordpiece(
    directory: str | os.PathLike[str], *, overwrite: bool = False
) -> WordPieceVocabulary:
    """Writes `default_pieces` as `vocab.txt`; PlugError as `train_wordpiece`."""
    path = output_path(directory, WORDPIECE, overwrite=overwrite)
    return _write(default_pieces(), path)


def train_wordpiece(
    texts: Iterable[str],
    *,
    directory: str | os.PathLike[str],
    vocab_size: int = DEFAULT_SIZE,
    overwrite: bool = False,
) -> WordPieceVocabulary:
    """Writes `vocab.txt`: `base_pieces`, pieces from the texts, then [unusedN] up to the full size.

    From the texts come the most frequent single-character words of other blocks (rare ideographs,
    symbols), in at most a quarter of the free space, and pieces of words in Latin or other scripts,
    learned by TensorFlow Text's WordPiece learner from the 100,000 most frequent words. Memory is
    bounded whatever the size of the texts: a million words are counted, and the rarest dropped. The
    same texts give the same file.

    Args:
      texts: documents, of any length; read once.
      directory: output directory, created if missing.
      vocab_size: number of pieces.
      overwrite: whether an existing vocab.txt may be replaced.

    Raises:
      PlugError: vocab.txt exists, the directory holds files of another tokenizer, or `vocab_size`
        has no room for `base_pieces`.
    """
    path = output_path(directory, WORDPIECE, overwrite=overwrite)
    base = base_pieces()
    if vocab_size < len(base):
        raise PlugError(
            f"A WordPiece vocabulary of {vocab_size} has no room for the {len(base)} characters "
            "and special pieces that it always holds; ask for more, or train with SentencePiece."
        )
    words, characters = _count(texts)
    room = vocab_size - len(base)
    found = _frequent(characters, room // _CHARACTER_SHARE)
    pieces = [*base, *found]
    return _write(_filled([*pieces, *_learn(words, pieces, vocab_size)], vocab_size), path)


def _count(texts: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """Counts of words, and of single-character words, without base pieces."""
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, 64)):
        for encoded, count in Counter(_find_words(tf.constant(batch)).numpy().tolist()).items():
            word = encoded.decode()
            (words if len(word) > 1 else characters)[word] += count
        for counter in (words, characters):
            if len(counter) > 2 * _MAX_COUNTED:
                kept = counter.most_common(_MAX_COUNTED)
                counter.clear()
                counter.update(dict(kept))
    return words, characters


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def _find_words(texts: tf.Tensor) -> tf.Tensor:
    """The words of the texts that are not base pieces: tf.string [s] to [w]."""
    # Most of a Chinese text is removed before splitting.
    common = rf"[\x{{{_FIRST_IDEOGRAPH:X}}}-\x{{{_LAST_IDEOGRAPH:X}}}{_CHINESE_PUNCTUATION}]+"
    texts = tf.strings.regex_replace(clean(texts), common, " ")
    return split_words(texts).flat_values


def _frequent(counts: Counter[str], number: int) -> list[str]:
    """The most frequent keys that are not base pieces; ties by code point."""
    new = counts.keys() - set(base_pieces())
    ranked = sorted(new, key=lambda key: (-counts[key], key))
    return [key for key in ranked[:number] if counts[key] >= _MIN_COUNT]


def _learn(words: Counter[str], pieces: list[str], vocab_size: int) -> list[str]:
    """Pieces that the words add to `pieces`, single characters first."""
    room = vocab_size - len(pieces)
    if not words or not room:
        return []
    known = dict.fromkeys(pieces)  # the learner looks words up in it
    frequent = sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))[:_MAX_LEARNT_FROM]
    learnt = learner.learn(
        frequent,
        vocab_size=vocab_size,
        reserved_tokens=known,
        lower_thresh=_MIN_COUNT,
        max_token_length=_MAX_WORD_LENGTH,
        # A new character is two pieces, with and without "##".
        max_unique_chars=len(_WORD_CHARACTERS) + room // (2 * _CHARACTER_SHARE),
        slack_ratio=0,
    )
    return [piece for piece in learnt if piece not in known][:room]


def _filled(pieces: list[str], size: int) -> list[str]:
    return [*pieces, *(f"[unused{i}]" for i in range(1, size - len(pieces) + 1))]


def _write(pieces: list[str], path: str) -> WordPieceVocabulary:
    content = "".join(f"{piece}\n" for piece in pieces).encode()
    write_files(path, content, SETTINGS, tokenizer_config(TextRules()))
    return WordPieceVocabulary(path)
