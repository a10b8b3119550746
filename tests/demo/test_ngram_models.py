"""Kneser-Ney smoothing: by hand, as a distribution, and against the formula over dictionaries."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest

from plug_jax.demo.ngram_models import KneserNey


def test_bigrams_by_hand() -> None:
    """Ids of "a b a b a c" over V = 4.

    Bigrams: ab 2, ba 2, ac 1: n1 = 1, n2 = 2, so d2 = 1/5. Different ids before: of a {b} and once
    at the beginning, 2; of b {a}, 1; of c {a}, 1; n1 = 2, n2 = 1: d1 = 2/4.
    p1(b) = (1 - 1/2) / 4 + (1/2 * 3 / 4) / 4 = 0.125 + 0.09375 = 0.21875
    p2(b | a) = (2 - 1/5) / 3 + (1/5 * 2 / 3) p1(b) = 0.6 + 0.02916667 = 0.62916667
    """
    model = KneserNey([np.array([0, 1, 0, 1, 0, 2])], order=2, vocab_size=4)
    found = np.exp(model.log_probabilities(np.array([0, 1]), start=1))
    assert found == pytest.approx([0.62916667])
    # Never followed by anything: the model backs off.
    assert np.exp(model.log_probabilities(np.array([2, 1]), start=1)) == pytest.approx([0.21875])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_is_a_distribution_and_the_formula(order: int) -> None:
    rng = np.random.default_rng(order)
    sequences = [rng.choice(5, size, p=[0.5, 0.2, 0.1, 0.1, 0.1]) for size in (40, 3, 1, 60)]
    model = KneserNey(sequences, order=order, vocab_size=6)
    for context in ([], [0], [0, 1], [4, 0, 0], [5, 0, 1], [0, 0, 0, 1]):
        following = [
            math.exp(model.log_probabilities(np.array([*context, w]))[-1]) for w in range(6)
        ]
        assert sum(following) == pytest.approx(1.0)
        plain = [_plainly(sequences, order, 6, tuple(context), w) for w in range(6)]
        assert following == pytest.approx(plain)


def test_more_context_helps_where_there_is_some() -> None:
    """A repetitive text: each order predicts it better than the lower one."""
    text = np.tile([0, 1, 2, 0, 3, 2, 0, 1, 3], 40)
    losses = [
        -KneserNey([text], order=n, vocab_size=5).log_probabilities(text).mean()
        for n in range(1, 5)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.2 > 0.1 > losses[3]


def test_grams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="order 5"):
        KneserNey([np.array([0])], order=5, vocab_size=10_000)


def _plainly(
    sequences: list[np.ndarray], order: int, vocab_size: int, context: tuple[int, ...], word: int
) -> float:
    counts: list[collections.Counter[tuple[int, ...]]] = [
        collections.Counter() for _ in range(order + 1)
    ]
    for sequence in (one.tolist() for one in sequences):
        for i in range(len(sequence) - order + 1):
            counts[order][tuple(sequence[i : i + order])] += 1
    for length in range(order - 1, 0, -1):
        for gram in counts[length + 1]:
            counts[length][gram[1:]] += 1
        for sequence in sequences:
            if len(sequence) >= length:
                counts[length][tuple(sequence[:length].tolist())] += 1

    def probability(length: int) -> float:
        if length == 0:
            return 1 / vocab_size
        shorter = probability(length - 1)
        before = context[len(context) - length + 1 :] if length > 1 else ()
        if len(context) < length - 1:
            return shorter
        following = {g: n for g, n in counts[length].items() if g[:-1] == before}
        if not following:
            return shorter
        values = list(counts[length].values())
        once, twice = values.count(1), values.count(2)
        discount = once / (once + 2 * twice) if once else 0.5
        total = sum(following.values())
        of_word = max(following.get((*before, word), 0) - discount, 0.0)
        return of_word / total + discount * len(following) / total * shorter

    return probability(order)
