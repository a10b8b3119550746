"""Decoding constraints against worked examples and plain versions of Hugging Face's rules."""

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.decoding.constraints import FREE, MAX_NGRAM, constrain
from tests.decoding.test_generate import constraints

END, VOCAB = 9, 10


def allowed(tokens, length, *, logits=None, penalties=False, **changes):
    """The logits of one row after constraints, as a list; -inf for forbidden tokens."""
    tokens = np.asarray([tokens], np.int32)
    logits = jnp.zeros((1, VOCAB)) if logits is None else jnp.asarray([logits], jnp.float32)
    limits = constraints(1, max_length=20, vocab_size=VOCAB, **changes)
    found = constrain(
        logits,
        limits,
        tokens=jnp.asarray(tokens),
        lengths=jnp.array([length]),
        end_token=END,
        penalties=penalties,
    )
    return np.asarray(found)[0]


def ids_left(*args, **kwargs):
    return np.flatnonzero(allowed(*args, **kwargs) > -np.inf).tolist()


def test_nothing_asked_changes_nothing():
    logits = list(range(VOCAB))
    assert allowed([1, 2, 0], 2, logits=logits).tolist() == logits
    assert allowed([1, 2, 0], 2, logits=logits, penalties=True).tolist() == logits


def test_no_end_token_before_the_minimum_length():
    assert END not in ids_left([1, 0, 0], 1, min_length=[2])
    assert END in ids_left([1, 2, 0], 2, min_length=[2])


def test_forced_tokens_overrule_what_is_forbidden_and_then_leave_free():
    forced = {"forced": [[4, FREE, 5]], "forbidden": np.arange(VOCAB) == 4}
    assert ids_left([0] * 5, 0, **forced) == [4]
    assert ids_left([4] + [0] * 4, 1, **forced) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert ids_left([4, 1] + [0] * 3, 2, **forced) == [5]
    assert len(ids_left([4, 1, 5, 0, 0], 3, **forced)) == VOCAB - 1


def test_a_row_with_nothing_left_may_end():
    assert ids_left([1, 0], 1, forbidden=np.ones(VOCAB, bool), min_length=[5]) == [END]


def test_the_repetition_penalty_by_hand():
    """What lies beyond the text's length does not count."""
    logits = [3.0, -3.0, 0.0, 3.0, -3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    found = allowed(
        [0, 1, 2, 5, 5], 3, logits=logits, penalties=True, repetition_penalty=np.float32([2.0])
    )
    assert found.tolist() == [1.5, -6.0, 0.0, 3.0, -3.0, 3.0, 3.0, 3.0, 3.0, 3.0]


def test_repeated_ngrams_by_hand():
    def banned(tokens, n):
        room = [*tokens, 0, 0, 0]
        left = ids_left(room, len(tokens), penalties=True, no_repeat_ngram=np.int32([n]))
        return sorted(set(range(VOCAB)) - set(left))

    assert banned([5, 6, 7, 5, 6], 3) == [7]
    assert banned([5, 6, 7, 5, 6], 2) == [7]
    assert banned([5, 6, 7, 5, 6], 1) == [5, 6, 7]
    assert banned([5, 6, 7, 5, 6], 4) == []
    assert banned([5, 5, 5], 2) == [5]
    assert banned([5], 2) == []
    assert banned([], 1) == []
    assert banned([1, 2, 3, 1, 2, 4, 1, 2], 3) == [3, 4]


def test_repeated_ngrams_against_the_rule_written_out():
    rng = np.random.default_rng(0)
    rows, room = 200, 24
    tokens = rng.integers(0, 3, (rows, room), np.int32)
    lengths = rng.integers(0, room + 1, rows, np.int32)
    n = rng.integers(0, MAX_NGRAM + 1, rows, np.int32)
    limits = constraints(rows, max_length=room, vocab_size=3, no_repeat_ngram=n)
    found = jax.jit(constrain, static_argnames=("end_token", "penalties"))(
        jnp.zeros((rows, 3)),
        limits,
        tokens=jnp.asarray(tokens),
        lengths=jnp.asarray(lengths),
        end_token=2,
        penalties=True,
    )
    some = 0
    for row in range(rows):
        text = tokens[row, : lengths[row]].tolist()
        size = n[row]
        seen = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)} if size else set()
        last = text[len(text) - size + 1 :] if size > 1 else []
        banned = [i for i in range(3) if len(text) >= size - 1 and (*last, i) in seen]
        left = [i for i in range(3) if i not in banned] or [2]
        assert np.flatnonzero(np.asarray(found[row]) > -np.inf).tolist() == left, (text, size)
        some += bool(banned)
    assert some > 50
