"""Conventions of published BLEU and ROUGE scores: tokens, averaging and smoothing.

Scores differ by several points between conventions: compare only within one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow as tf

from plug_jax.data.vocabularies.wordpiece import clean, split_words
from plug_jax.errors import PlugError
from plug_jax.generation_tasks.bleu import (
    BleuCounts,
    Smoothing,
    Tokens,
    bleu,
    count,
    distinct,
    method1,
    method3,
    no_smoothing,
    tiny,
    total,
)
from plug_jax.generation_tasks.rouge import Rouges, dureader, rouge_chinese, rouge_package

Tokenize = Callable[[Sequence[str]], list[list[str]]]


def _bert_characters(texts: Sequence[str]) -> list[list[str]]:
    """Every character except spaces, also Latin ones, of texts cleaned and lower-cased by BERT."""
    return [[char for char in text if not char.isspace()] for text in _decoded(clean(_utf8(texts)))]


def _bert_words(texts: Sequence[str]) -> list[list[str]]:
    """BERT's basic words, in lower case: Chinese characters, punctuation marks, Latin words."""
    words = split_words(clean(_utf8(texts)))
    return [[word.decode() for word in row] for row in words.to_list()]


def _characters(texts: Sequence[str]) -> list[list[str]]:
    """`' '.join(text).lower().split(' ')`: a space in the text becomes two empty tokens."""
    return [" ".join(text).lower().split(" ") if text else [] for text in texts]


def _utf8(texts: Sequence[str]) -> tf.Tensor:
    return tf.constant([text.encode() for text in texts], tf.string, shape=[len(texts)])


def _decoded(strings: tf.Tensor) -> list[str]:
    return [text.decode() for text in strings.numpy()]


@dataclasses.dataclass(frozen=True)
class Convention:
    """A scoring convention; docs/generation_tasks.md lists where it was used."""

    tokenize: Tokenize
    smoothing: Smoothing = no_smoothing
    mean_bleu: bool = False  # the mean over texts instead of corpus BLEU
    least_total: int = 0  # see `bleu.count`
    rouges: Callable[[Tokens, Sequence[Tokens]], Rouges] = rouge_chinese
    shortest_reference: int = 0  # tokens; shorter references are ignored
    empty_text: str = ""  # replaces an empty text


_T5_PEGASUS = Convention(_characters, method1, mean_bleu=True, least_total=1, rouges=rouge_package)

CONVENTIONS: Mapping[str, Convention] = {
    "plug": Convention(
        _bert_characters,
        tiny,
        rouges=dureader,
        shortest_reference=3,
    ),
    "paddlenlp": Convention(_bert_words),
    "t5_pegasus": _T5_PEGASUS,
    "clge": _T5_PEGASUS,
    "cpt": Convention(_bert_words, method3, least_total=1, rouges=rouge_package, empty_text="。"),
}


def find_convention(name: str) -> Convention:
    """The convention with this name. PlugError with the known names."""
    if name not in CONVENTIONS:
        raise PlugError(f"there is no convention {name!r}; there are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of texts by a convention, in percent, and counts."""

    metrics: dict[str, float]  # bleu_1 to bleu_4, rouge_1, rouge_2, rouge_l, distinct_1, distinct_2
    of_texts: list[dict[str, float] | None]  # ROUGE of each (and BLEU, if it is a mean)
    scored: int  # texts scored
    short_references: int  # texts not scored because all references are too short


def score(
    convention: Convention, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> Scores:
    """Scores texts against their references, at least one each.

    Texts whose references are all too short for the convention are left out and counted.

    Raises:
        PlugError: no text is left.
    """
    all_references = iter(convention.tokenize([text for of in references for text in of]))
    wanted = [[next(all_references) for _ in of_text] for of_text in references]
    long_enough = [[r for r in of if len(r) >= convention.shortest_reference] for of in wanted]
    ours = convention.tokenize([text if text.strip() else convention.empty_text for text in texts])

    pairs = [(text, of_text) for text, of_text in zip(ours, long_enough, strict=True) if of_text]
    if not pairs:
        raise PlugError(
            f"There is nothing to score: of {len(texts):,} texts none has a reference of at least "
            f"{convention.shortest_reference} tokens."
        )
    of_pairs = [_of_text(convention, *pair) for pair in pairs]
    metrics = {name: sum(of[name] for of in of_pairs) / len(pairs) for name in of_pairs[0]}
    if not convention.mean_bleu:
        metrics = _bleus(convention, [_count(convention, *pair) for pair in pairs]) | metrics
    for order in (1, 2):
        metrics[f"distinct_{order}"] = distinct((text for text, _ in pairs), order)
    scores = iter(of_pairs)
    return Scores(
        _percent(metrics),
        [_percent(next(scores)) if of_text else None for of_text in long_enough],
        scored=len(pairs),
        short_references=len(texts) - len(pairs),
    )


def _of_text(
    convention: Convention, text: Tokens, references: Sequence[Tokens]
) -> dict[str, float]:
    """The scores of one text, for those that are means over texts."""
    rouges = convention.rouges(text, references)
    if not convention.mean_bleu:
        return rouges
    return _bleus(convention, [_count(convention, text, references)]) | rouges


def _count(convention: Convention, text: Tokens, references: Sequence[Tokens]) -> BleuCounts:
    return count(text, references, least_total=convention.least_total)


def _bleus(convention: Convention, counts: Iterable[BleuCounts]) -> dict[str, float]:
    scores = bleu(total(counts), convention.smoothing)
    return {f"bleu_{order}": value for order, value in enumerate(scores, start=1)}


def _percent(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in metrics.items()}
