"""The cached decoding loop over a Markov chain, where every text's probability is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plug_jax.decoding.constraints import Constraints
from plug_jax.decoding.generate import advance, start
from plug_jax.decoding.sampling import Sampling, candidates_for, row_rngs

END = 3
CHAIN = np.array(  # row: last token, column: probability of the next
    [
        [0.1, 0.6, 0.1, 0.2],
        [0.3, 0.1, 0.5, 0.1],
        [0.3, 0.15, 0.05, 0.5],
        [0.25, 0.25, 0.25, 0.25],
    ]
)


def chain_to_logits(tokens, calls, active):
    return jnp.log(jnp.asarray(CHAIN, jnp.float32))[tokens], calls + active


def constraints(rows, *, max_length, vocab_size=4, forbidden=None, **changes):
    """No constraints except `max_length` and the given ones."""
    nothing = Constraints(
        min_length=jnp.zeros(rows, jnp.int32),
        max_length=jnp.broadcast_to(jnp.asarray(max_length, jnp.int32), rows),
        repetition_penalty=jnp.ones(rows),
        no_repeat_ngram=jnp.zeros(rows, jnp.int32),
        forbidden=jnp.broadcast_to(
            jnp.zeros(vocab_size, bool) if forbidden is None else jnp.asarray(forbidden),
            (rows, vocab_size),
        ),
        forced=jnp.zeros((rows, 0), jnp.int32),
    )
    return nothing.replace(**{k: jnp.asarray(v) for k, v in changes.items()})


@functools.partial(
    jax.jit, static_argnames=("tokens_to_logits", "room", "end_token", "candidates", "penalties")
)
def written(tokens_to_logits, start_tokens, limits, sampling, *, room, steps, **static):
    rows = start_tokens.shape[0]
    decoding = start(
        jnp.zeros(rows, jnp.int32),
        start_tokens=start_tokens,
        max_new_tokens=room,
        end_token=static["end_token"],
    )
    for some in steps:
        decoding = advance(tokens_to_logits, decoding, limits, sampling, steps=some, **static)
    return decoding


def run_chain(
    start_tokens,
    *,
    max_new_tokens,
    seed=0,
    tokens_to_logits=chain_to_logits,
    temperature=1.0,
    top_k=0,
    steps=None,
    **limits,
):
    """(tokens, lengths) and all other outputs of a batch of rows."""
    rows = len(start_tokens)
    sampling = Sampling(
        rngs=row_rngs(jax.random.key(seed), rows),
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k),
        top_p=jnp.ones(rows),
    )
    limits = {"max_length": max_new_tokens, **limits}
    return jax.device_get(
        written(
            tokens_to_logits,
            jnp.asarray(start_tokens),
            constraints(rows, **limits),
            sampling,
            room=max_new_tokens,
            steps=tuple(steps or [max_new_tokens]),
            end_token=END,
            candidates=candidates_for(temperature=temperature, top_k=top_k, vocab_size=4),
            penalties=False,
        )
    )


def test_greedy_rows_end_each_at_its_own_end_token():
    # 0 -> 1 -> 2 -> END; the rows start at 0, 1 and 2.
    found = run_chain([0, 1, 2], max_new_tokens=5, temperature=0)
    assert found.tokens.tolist() == [[1, 2, 3, 3, 3], [2, 3, 3, 3, 3], [3, 3, 3, 3, 3]]
    assert found.lengths.tolist() == [2, 1, 0]
    assert found.stopped.all() and found.ended.all()
    assert found.tokens.dtype == found.lengths.dtype == np.int32
    # log-probabilities of the generated tokens, including the end token, and zeros after it
    np.testing.assert_allclose(
        np.exp(found.log_probs),
        [[0.6, 0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1, 1], [0.5, 1, 1, 1, 1]],
        rtol=1e-6,
    )
    assert found.cache.tolist() == [3, 2, 1]  # finished rows do not advance


def test_a_row_without_end_token_fills_its_length():
    found = run_chain([0, 1, 0], max_new_tokens=3, max_length=[2, 2, 0], temperature=0)
    assert found.tokens.tolist() == [[1, 2, 3], [2, 3, 3], [3, 3, 3]]
    assert found.lengths.tolist() == [2, 1, 0]
    assert found.stopped.tolist() == [False, True, False]
    assert found.ended.all()


def test_the_loop_stops_once_every_row_has_ended():
    reads = []

    def observed(tokens, cache, active):
        jax.debug.callback(lambda tokens: reads.append(tokens.tolist()), tokens)
        return chain_to_logits(tokens, cache, active)

    run_chain([0, 2], max_new_tokens=50, temperature=0, tokens_to_logits=observed)
    jax.effects_barrier()
    assert reads == [[0, 2], [1, END], [2, END]]


def test_a_forbidden_end_token_never_ends_a_row():
    forbidden = [False, False, False, True]
    found = run_chain([0] * 8, max_new_tokens=20, forbidden=forbidden)
    assert found.lengths.tolist() == [20] * 8
    assert not (found.tokens == END).any()


def test_in_how_many_calls_a_text_is_written_changes_nothing():
    whole = run_chain([0] * 32, max_new_tokens=9, seed=3)
    parts = run_chain([0] * 32, max_new_tokens=9, seed=3, steps=[2, 1, 0, 5, 100])
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert not run_chain([0] * 32, max_new_tokens=9, seed=3, steps=[2, 1]).ended.all()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_k": 2}], ids=str)
def test_sampled_texts_follow_the_chain(options):
    rows, length = 20_000, 3
    step = CHAIN ** (1 / options.get("temperature", 1))
    if options:
        step = np.where(step >= np.sort(step, axis=1)[:, [-2]], step, 0)
        step[3] = 0  # the end token's row is never read
    step /= np.maximum(step.sum(1, keepdims=True), 1e-9)
    expected = {}
    for text in itertools.product(range(4), repeat=length):
        probability, last, ended = 1.0, 0, False
        for token in text:
            probability *= (token == END) if ended else step[last, token]
            last, ended = token, ended or token == END
        if probability > 0:
            expected[text] = probability
    written = run_chain([0] * rows, max_new_tokens=length, **options)
    tokens, lengths = written.tokens, written.lengths
    found = {}
    for row in tokens.tolist():
        found[tuple(row)] = found.get(tuple(row), 0) + 1
    assert found.keys() <= expected.keys()
    assert abs(sum(expected.values()) - 1) < 1e-6
    counts = np.array([found.get(text, 0) for text in expected])
    assert stats.chisquare(counts, np.array(list(expected.values())) * rows).pvalue > 1e-4
    assert lengths.tolist() == (tokens != END).sum(1).tolist()


def test_the_seed_decides_and_a_row_depends_on_neither_its_neighbours_nor_the_limit():
    long = run_chain([0] * 16, max_new_tokens=12, seed=5).tokens
    np.testing.assert_array_equal(long, run_chain([0] * 16, max_new_tokens=12, seed=5).tokens)
    np.testing.assert_array_equal(long[:4, :7], run_chain([0] * 4, max_new_tokens=7, seed=5).tokens)
    assert (long != run_chain([0] * 16, max_new_tokens=12, seed=6).tokens).any()
    assert len({tuple(row) for row in long.tolist()}) > 8
