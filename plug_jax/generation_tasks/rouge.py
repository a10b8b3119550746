"""ROUGE-1, 2 and L over given tokens, as computed by the programs behind published scores.

All count sets of n-grams. ROUGE-L differs: DuReader's, which PLUG uses, weighs recall (beta 1.2)
and combines the best precision and the best recall over the references; rouge-chinese's is F1; the
package `rouge` counts *distinct* tokens in a union of subsequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from plug_jax.generation_tasks.bleu import Tokens, ngrams

Rouges = dict[str, float]  # rouge_1, rouge_2 and rouge_l, each in [0, 1]

_NOT_ZERO = 1e-8  # added to a divisor by the packages


def dureader(text: Tokens, references: Sequence[Tokens]) -> Rouges:
    """DuReader's ROUGE-L, beta 1.2, with rouge-chinese's ROUGE-1 and 2, which it lacks."""
    return rouge_chinese(text, references) | {"rouge_l": rouge_l(text, references, beta=1.2)}


def rouge_chinese(text: Tokens, references: Sequence[Tokens]) -> Rouges:
    """The F1s of rouge-chinese 1.0.3, for the best reference."""
    return {
        "rouge_1": rouge_n(text, references, 1),
        "rouge_2": rouge_n(text, references, 2),
        "rouge_l": rouge_l(text, references),
    }


def rouge_package(text: Tokens, references: Sequence[Tokens]) -> Rouges:
    """The F1s of `rouge` 1.0.1, for the best reference.

    A text is split into sentences at each ".", which is then not a word. ROUGE-L counts distinct
    tokens in the common subsequences of every pair of sentences, and in the texts.
    """
    ours = _sentences(text)
    theirs = [_sentences(reference) for reference in references]
    words = list(itertools.chain(*ours))
    wanted = [list(itertools.chain(*reference)) for reference in theirs]
    return {
        "rouge_1": rouge_n(words, wanted, 1),
        "rouge_2": rouge_n(words, wanted, 2),
        "rouge_l": max(_union_f1(ours, reference) for reference in theirs),
    }


def rouge_n(text: Tokens, references: Sequence[Tokens], order: int) -> float:
    """F1 of the sets of n-grams, in [0, 1], for the best reference.

    Example, order 1: of "的 的 人" and "的 天" the sets share 1 of 2 and 2: F1 is 1/2.
    """
    ours = set(ngrams(text, order))
    return max(_f1(ours, set(ngrams(reference, order))) for reference in references)


def rouge_l(text: Tokens, references: Sequence[Tokens], *, beta: float = 1.0) -> float:
    """F-measure of the longest common subsequence, in [0, 1], from the best P and the best R.

    (1 + beta^2) P R / (R + beta^2 P), P and R each the largest over the references.

    Example, beta 1.2: "天 地 人" and "天 人 人 好" share 天 人: P is 2/3, R 1/2, F is
    2.44 * (1/3) / (1/2 + 1.44 * 2/3) = 0.5571.
    """
    lengths = [len(common_subsequence(reference, text)) for reference in references]
    precision = max(lengths) / len(text) if text else 0.0
    recall = max(n / len(r) if r else 0.0 for n, r in zip(lengths, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def common_subsequence(a: Tokens, b: Tokens) -> list[str]:
    """A longest common subsequence; of several, the one that `rouge` finds."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longest = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if x == y else longest
    found, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.append(a[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _sentences(tokens: Tokens) -> list[list[str]]:
    """Words of the sentences as in the package; a blank sentence is one empty word."""
    parts = " ".join(tokens).split(".")
    return [" ".join(part.split()).split(" ") for part in parts if part]


def _union_f1(ours: list[list[str]], theirs: list[list[str]]) -> float:
    union: set[str] = set()
    for reference in theirs:
        for sentence in ours:
            union.update(common_subsequence(reference, sentence))
    return _ratio(len(union), len(set().union(*ours)), len(set().union(*theirs)))


def _f1(ours: set[tuple[str, ...]], theirs: set[tuple[str, ...]]) -> float:
    return _ratio(len(ours & theirs), len(ours), len(theirs))


def _ratio(common: int, ours: int, theirs: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / ours, common / theirs
    return 2 * precision * recall / (precision + recall + _NOT_ZERO)
