"""BLEU over given tokens, with the smoothing of the programs behind published scores."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

ORDERS = 4  # the longest n-grams

Tokens = Sequence[str]


@dataclasses.dataclass(frozen=True)
class BleuCounts:
    """The counts behind BLEU, for one text or summed over many."""

    matches: tuple[int, ...]  # by order 1 to 4: clipped n-gram matches with references
    totals: tuple[int, ...]  # all n-grams of the text
    length: int = 0  # tokens of the text
    reference_length: int = 0  # closest reference length; the shorter of two

    def __add__(self, other: BleuCounts) -> BleuCounts:
        """The sum of both counts."""
        return BleuCounts(
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
            tuple(a + b for a, b in zip(self.totals, other.totals, strict=True)),
            self.length + other.length,
            self.reference_length + other.reference_length,
        )


# (matches by order, totals by order) to a precision for each order.
Smoothing = Callable[[Sequence[int], Sequence[int]], list[float]]


def no_smoothing(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    """Plain precisions; 0 if there is no n-gram. sacrebleu's "none"."""
    return [m / t if t else 0.0 for m, t in zip(matches, totals, strict=True)]


def tiny(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    """DuReader's and COCO's, which matters for texts too short for an n-gram."""
    return [(m + 1e-15) / (t + 1e-9) for m, t in zip(matches, totals, strict=True)]


def method1(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    """nltk's: 0.1 matches if there is none."""
    return [(m or 0.1) / max(t, 1) for m, t in zip(matches, totals, strict=True)]


def method3(matches: Sequence[int], totals: Sequence[int]) -> list[float]:
    """nltk's (NIST): 1/2 match for the lowest order without one, 1/4 for the next, and so on."""
    precisions, credit = [], 1.0
    for m, t in zip(matches, totals, strict=True):
        if m == 0:
            credit /= 2
        precisions.append((m or credit) / max(t, 1))
    return precisions


def count(text: Tokens, references: Sequence[Tokens], *, least_total: int = 0) -> BleuCounts:
    """The counts of one text. `least_total`: lower bound of n-gram totals; 1 in nltk.

    Example: "的 的 的" and the reference "的 人 的" have matches 2, 0, 0, 0 (the third 的 is
    clipped) and totals 3, 2, 1, 0.
    """
    matches, totals = [], []
    for order in range(1, ORDERS + 1):
        grams = ngrams(text, order)
        best: collections.Counter[tuple[str, ...]] = collections.Counter()
        for reference in references:
            best |= ngrams(reference, order)
        matches.append((grams & best).total())
        totals.append(max(grams.total(), least_total))
    closest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return BleuCounts(tuple(matches), tuple(totals), len(text), closest)


def bleu(counts: BleuCounts, smoothing: Smoothing = no_smoothing) -> list[float]:
    """BLEU-1 to BLEU-4, each in [0, 1]: geometric mean of the precisions times the brevity penalty.

    The penalty is exp(1 - r / c) if the text's length c is below the references' r. Without any
    match or token, BLEU is 0 whatever the smoothing.
    """
    if not counts.matches[0]:
        return [0.0] * ORDERS
    penalty = math.exp(min(0.0, 1 - counts.reference_length / counts.length))
    scores, product = [], 1.0
    for order, precision in enumerate(smoothing(counts.matches, counts.totals), start=1):
        product *= precision
        scores.append(penalty * product ** (1 / order))
    return scores


def total(counts: Iterable[BleuCounts]) -> BleuCounts:
    """The sum, for corpus BLEU."""
    return sum(counts, BleuCounts((0,) * ORDERS, (0,) * ORDERS))


def ngrams(tokens: Tokens, order: int) -> collections.Counter[tuple[str, ...]]:
    """How often each n-gram of `order` tokens occurs."""
    return collections.Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


def distinct(texts: Iterable[Tokens], order: int) -> float:
    """distinct-n of all texts together, in [0, 1]: distinct n-grams over all n-grams.

    Example: "天 天 人" and "天 人" have distinct-1 2/5 and distinct-2 2/3 (天天, 天人, 天人).
    """
    grams: collections.Counter[tuple[str, ...]] = collections.Counter()
    for tokens in texts:
        grams.update(ngrams(tokens, order))
    return len(grams) / grams.total() if grams else 0.0
