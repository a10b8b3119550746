"""Interpolated Kneser-Ney n-grams over ids: a baseline for language models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

_DISCOUNT = 0.5  # if nothing occurs exactly once, as in very small texts


@dataclasses.dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one length, each an int64: its ids as base-V digits."""

    grams: np.ndarray  # sorted
    counts: np.ndarray
    contexts: np.ndarray  # sorted; the grams without their last id
    totals: np.ndarray  # sum of the counts in each context
    types: np.ndarray  # number of distinct ids that follow each
    discount: float

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Order:
        """From sorted grams; the discount is n1 / (n1 + 2 n2), of grams counted once and twice."""
        once, twice = (int((counts == n).sum()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once else _DISCOUNT
        contexts, first, types = np.unique(
            grams // vocab_size, return_index=True, return_counts=True
        )
        totals = np.add.reduceat(counts, first) if len(first) else counts
        return cls(grams, counts, contexts, totals, types, discount)


class KneserNey:
    """Probability of an id given up to `order` - 1 others (Chen and Goodman, 1999, section 2.8).

    p_n(w | c) = max(count(c w) - d_n, 0) / count(c) + d_n types(c) / count(c) p_{n-1}(w | c')

    where c' is c without its first id, p_0 is 1 / V, and an unseen context is skipped. Below the
    highest order the count of a gram is the number of distinct ids before it; for a gram at the
    beginning of a sequence, which has none, how often it occurs there.
    """

    def __init__(self, sequences: Iterable[np.ndarray], *, order: int, vocab_size: int) -> None:
        """Count int [n] sequences of ids below `vocab_size`, whose `order`-th power fits int64."""
        if order < 1 or vocab_size**order >= 2**63:
            raise ValueError(f"order {order} over {vocab_size} ids")
        self._vocab_size = vocab_size
        sequences = [np.asarray(one, np.int64) for one in sequences]
        self._orders: list[_Order] = []
        longer = np.empty(0, np.int64)  # the distinct grams that are one id longer
        for length in range(order, 0, -1):
            if length == order:
                seen = [self._grams(one, length) for one in sequences]
            else:
                starts = [self._grams(one[:length], length) for one in sequences]
                seen = [longer % vocab_size**length, *starts]
            grams, counts = np.unique(np.concatenate(seen), return_counts=True)
            self._orders.insert(0, _Order.of(grams, counts, vocab_size))
            longer = grams

    def log_probabilities(self, sequence: np.ndarray, *, start: int = 0) -> np.ndarray:
        """Log-probabilities (natural), float64 [n - start], of the ids from `start` on.

        The context of an id is its up to `order` - 1 predecessors.
        """
        sequence = np.asarray(sequence, np.int64)
        found = np.full(len(sequence), 1.0 / self._vocab_size)
        for length, order in enumerate(self._orders, start=1):
            if len(sequence) < length:
                break
            grams, places = self._grams(sequence, length), slice(length - 1, None)
            which, known = _find(order.contexts, grams // self._vocab_size)
            gram, counted = _find(order.grams, grams)
            counts = np.where(counted, order.counts[gram], 0)
            totals, types = order.totals[which], order.types[which]
            mixed = np.maximum(counts - order.discount, 0.0) + (
                order.discount * types * found[places]
            )
            found[places] = np.where(known, mixed / totals, found[places])
        return np.log(found[start:])

    def perplexity(self, texts: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """exp of the mean loss over int [n] texts, each with its preceding text, int [m]."""
        losses = [
            -self.log_probabilities(np.concatenate((before, text)), start=len(before))
            for before, text in texts
        ]
        return math.exp(np.concatenate(losses).mean())

    def _grams(self, sequence: np.ndarray, length: int) -> np.ndarray:
        """The n-grams of a sequence in order, each as one int64."""
        count = max(len(sequence) - length + 1, 0)
        digits = (sequence[i : i + count] for i in range(length))
        gram = np.zeros(count, np.int64)
        for digit in digits:
            gram = gram * self._vocab_size + digit
        return gram


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each key, and whether it is present; int64 and bool, shaped as `keys`."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
