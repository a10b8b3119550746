"""Beam search against exhaustive search, over a second-order Markov chain."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.decoding.beam import beam_search
from tests.decoding.test_generate import constraints

VOCAB, END = 4, 3
# [prompt, token before last, last token] -> probabilities of the next; two prompts.
TABLE = np.random.default_rng(5).dirichlet(np.ones(VOCAB), (2, VOCAB, VOCAB)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("beams", "room", "penalties"))
def search(limits, length_penalty, table=TABLE, *, beams, room, length_offset=0.0, penalties=False):
    """A row's cache: its prompt, and the last token read."""

    def tokens_to_logits(tokens, cache, active):
        prompts, before = cache
        logits = jnp.log(jnp.asarray(table))[prompts, before, tokens]
        return logits, (prompts, tokens)

    def reorder(cache, parents):
        return jax.tree.map(lambda leaf: leaf[parents], cache)

    prompts = jnp.repeat(jnp.arange(2), beams)
    return beam_search(
        tokens_to_logits,
        (prompts, jnp.zeros_like(prompts)),
        reorder,
        limits,
        start_tokens=jnp.zeros(2 * beams, jnp.int32),
        num_beams=beams,
        max_new_tokens=room,
        end_token=END,
        length_penalty=length_penalty,
        length_offset=length_offset,
        penalties=penalties,
    )


def every_text(prompt, max_length, *, min_length=0, length_penalty, length_offset=0, forbidden=()):
    """[(score, log-probability, ids, ended)] of all texts, best first."""
    texts = []
    free = [i for i in range(VOCAB) if i != END and i not in forbidden]
    for length in range(min_length, max_length + 1):
        for ids in itertools.product(free, repeat=length):
            whole = [*ids, END] if length < max_length else list(ids)
            total, before, last = 0.0, 0, 0
            for token in whole:
                total += float(np.log(TABLE[prompt, before, last, token]))
                before, last = last, token
            length_term = (length_offset + len(whole)) / (length_offset + 1)
            score = total / length_term**length_penalty
            texts.append((score, total, list(ids), len(whole) > length))
    return sorted(texts, reverse=True)


def found_texts(found, prompt):
    rows = zip(
        *(
            np.asarray(leaf[prompt]).tolist()
            for leaf in (found.scores, found.log_probs, found.tokens, found.lengths, found.ended)
        ),
        strict=True,
    )
    return [(s, p, t[:n], e) for s, p, t, n, e in rows if s > -np.inf]


def assert_same_texts(found, expected):
    assert [(ids, ended) for _, _, ids, ended in found] == [(i, e) for _, _, i, e in expected]
    np.testing.assert_allclose([f[:2] for f in found], [e[:2] for e in expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("length_penalty", "length_offset"),
    [(1.0, 0.0), (0.0, 0.0), (2.0, 0.0), (-1.0, 0.0), (0.6, 5.0)],  # the last: GNMT's, PLUG's
)
def test_beams_enough_for_every_text_find_the_best_of_all(length_penalty, length_offset):
    """Three tokens and an end token: at most 27 live texts."""
    beams, room = 27, 4
    limits, penalty = constraints(2 * beams, max_length=3), {"length_penalty": length_penalty}
    penalty["length_offset"] = length_offset
    found = search(limits, beams=beams, room=room, **penalty)
    for prompt in range(2):
        expected = every_text(prompt, 3, **penalty)
        assert_same_texts(found_texts(found, prompt)[:10], expected[:10])
    rest = np.asarray(found.tokens)[:, :, 3]
    assert (rest == END).all()  # space unused with a shorter maximum


def test_limits_and_what_is_forbidden_hold_for_each_prompt():
    beams = 27
    limits = constraints(
        2 * beams,
        max_length=np.repeat([3, 2], beams),
        min_length=np.repeat([2, 0], beams).astype(np.int32),
        forbidden=np.array([False, True, False, False]),
    )
    found = search(limits, 1.0, beams=beams, room=4)
    for prompt, (most, least) in enumerate([(3, 2), (2, 0)]):
        expected = every_text(prompt, most, min_length=least, length_penalty=1.0, forbidden=[1])
        assert_same_texts(found_texts(found, prompt), expected)  # all of them


def test_one_beam_is_greedy_where_it_ends_or_not():
    found = search(constraints(2, max_length=6), 0.0, beams=1, room=6)
    for prompt in range(2):
        before, last, ids, total = 0, 0, [], 0.0
        while len(ids) < 6:
            probabilities = TABLE[prompt, before, last]
            before, last = last, int(np.argmax(probabilities))
            total += np.log(probabilities[last])
            if last == END:
                break
            ids.append(last)
        ((_, log_prob, text, ended),) = found_texts(found, prompt)
        # A text that ended early may beat the greedy one, never the reverse.
        assert log_prob >= total - 1e-5
        if log_prob == pytest.approx(total, abs=1e-5):
            assert (text, ended) == (ids, last == END)


def test_few_beams_find_texts_that_exist_with_their_own_scores_and_more_find_better():
    best = []
    for beams in (1, 2, 4, 8):
        found = search(constraints(2 * beams, max_length=5), 1.0, beams=beams, room=5)
        texts = {tuple(i): (s, p, e) for s, p, i, e in every_text(0, 5, length_penalty=1.0)}
        mine = found_texts(found, 0)
        assert len({tuple(ids) for _, _, ids, _ in mine}) == len(mine) == beams
        for s, p, ids, ended in mine:
            np.testing.assert_allclose((s, p), texts[tuple(ids)][:2], rtol=1e-5)
            assert ended == texts[tuple(ids)][2]
        assert [m[0] for m in mine] == sorted((m[0] for m in mine), reverse=True)
        best.append(mine[0][0])
    assert best == sorted(best)


def plain_beams(prompt, beams, room, length_penalty):
    """[(score, ids)] of a beam search that never stops early, best first."""
    live, finished = [(0.0, [])], []
    for count in range(1, room + 1):
        steps = []
        for total, ids in live:
            before, last = ([0, 0] + ids)[-2:]
            steps += [
                (total + float(np.log(TABLE[prompt, before, last, token])), [*ids, token])
                for token in range(VOCAB)
            ]
        steps = sorted(steps, reverse=True)[: 2 * beams]
        over = [s for s in steps if s[1][-1] == END or count == room]
        finished += [(s[0] / count**length_penalty, s[1]) for s in steps[:beams] if s in over]
        live = [s for s in steps if s not in over][:beams]
    return sorted(finished, reverse=True)[:beams]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_it_stops_only_when_nothing_better_can_come(beams, length_penalty):
    room = 10
    found = search(constraints(2 * beams, max_length=room), length_penalty, beams=beams, room=room)
    for prompt in range(2):
        expected = plain_beams(prompt, beams, room, length_penalty)
        ours = [([*ids, END] if e else ids, s) for s, _, ids, e in found_texts(found, prompt)]
        assert [ids for ids, _ in ours] == [ids for _, ids in expected]
        np.testing.assert_allclose([s for _, s in ours], [s for s, _ in expected], rtol=1e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scores_are_nan_where_the_model_gives_no_numbers_and_others_as_they_were(number):
    """The second prompt's logits become NaN after its second token, in the likeliest text."""
    table = np.full((2, VOCAB, VOCAB, VOCAB), 1e-9, np.float32)
    table[:, :, :] = [0.025, 0.9, 0.025, 0.05]
    sound = search(constraints(4, max_length=6), 1.0, table, beams=2, room=6)
    table[1, 1, 1, 2] = number
    found = search(constraints(4, max_length=6), 1.0, table, beams=2, room=6)
    for leaf, expected in ((found.scores, sound.scores), (found.log_probs, sound.log_probs)):
        assert np.isfinite(leaf[0]).all() and (leaf[0] == expected[0]).all()
        assert np.isnan(leaf[1]).all()
    assert (found.tokens[0] == sound.tokens[0]).all()


def test_a_text_that_gets_better_with_its_length_is_waited_for():
    """[END] at once scores log 0.9; 1 1 1 ... starts with log 0.05, adds nothing, over 10 ** 2."""
    table = np.full((2, VOCAB, VOCAB, VOCAB), 1e-9, np.float32)
    table[:, :, 0] = [0.025, 0.05, 0.025, 0.9]
    table[:, :, 1] = [1e-9, 1.0, 1e-9, 1e-9]
    found = search(constraints(2, max_length=10), 2.0, table, beams=1, room=10)
    for prompt in range(2):
        ((score, _, ids, ended),) = found_texts(found, prompt)
        assert (ids, ended) == ([1] * 10, False)
        assert score == pytest.approx(np.log(0.05) / 100, rel=1e-4)


def test_a_text_does_not_end_where_its_end_is_not_among_the_likeliest_continuations():
    """Of two beams [END] at once is third (0.25): likelier than any six tokens, but not a beam."""
    table = np.full((2, VOCAB, VOCAB, VOCAB), 1e-9, np.float32)
    table[:] = [0.5, 0.48, 1e-9, 0.02]
    table[:, 0, 0] = [0.4, 0.35, 1e-9, 0.25]
    found = search(constraints(4, max_length=6), 0.0, table, beams=2, room=6)
    for prompt in range(2):
        best = found_texts(found, prompt)[0]
        assert (best[2], best[3]) != ([], True) and len(best[2]) == 6


def test_log_probs_are_the_models_own_whatever_is_penalised_or_forced():
    """Scores are of what is compared, with penalties and what is forced, as in Hugging Face."""
    beams, room = 3, 4
    forced = np.tile([[1, 2, -1, -1]], (2 * beams, 1)).astype(np.int32)
    penalised = constraints(2 * beams, max_length=room, repetition_penalty=np.float32([3] * 6))
    for limits in (penalised, penalised.replace(forced=forced)):
        found = search(limits, 2.0, beams=beams, room=room, penalties=True)
        for prompt in range(2):
            own = {tuple(t[2]): t[1] for t in every_text(prompt, room, length_penalty=0.0)}
            for score, log_prob, ids, _ in found_texts(found, prompt):
                assert log_prob == pytest.approx(own[tuple(ids)], rel=1e-5)
                assert score != pytest.approx(log_prob / len(ids) ** 2, rel=1e-3)
