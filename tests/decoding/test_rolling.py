"""The released scheme for long texts, over a scripted model."""

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.decoding.rolling import RollingScheme, rewrite, roll, write_chunk
from plug_jax.decoding.sampling import Sampling, row_rngs

PAD, UNK, CLS, SEP, VOCAB, PADDED = 0, 1, 2, 3, 20, 24
SCHEME = RollingScheme(
    cls_id=CLS, sep_id=SEP, unk_id=UNK, vocab_size=VOCAB, chunk=4, context_length=8
)


def test_the_text_takes_the_place_of_the_contexts_sep():
    assert rewrite([CLS, 5, 6, SEP], [7, 8], SCHEME) == [CLS, 5, 6, 7, 8, SEP]
    assert rewrite([CLS, 5, 6, 7, 8, SEP], [9, 10, 11], SCHEME) == [5, 6, 7, 8, 9, 10, 11, SEP]
    assert rewrite([CLS, 5, SEP], [], SCHEME) == [CLS, 5, SEP]


def chunk_writer(next_of, seen, *, asked):
    """A greedy `write` for `roll`: next_of(last tokens of the rows, sums of their contexts)."""
    rows = len(asked)
    greedy = Sampling(
        rngs=row_rngs(jax.random.key(0), rows),
        temperature=jnp.zeros(rows),
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=jnp.ones(rows),
    )

    @jax.jit
    def chunk(sums, written, draws, active):
        def tokens_to_logits(tokens, cache, active):
            return jax.nn.one_hot(next_of(tokens, sums), PADDED), cache

        return write_chunk(
            tokens_to_logits,
            0,
            greedy,
            SCHEME,
            written=written,
            asked=jnp.array(asked),
            draws=draws,
            active=active,
            candidates=1,
        )

    def write(contexts, written, draws, active):
        seen.append([list(c) for c in contexts])
        sums = jnp.array([sum(c) for c in contexts])
        return on_host(chunk(sums, jnp.array(written), jnp.full(rows, draws), jnp.array(active)))

    return write


def on_host(chunk):
    return tuple(np.asarray(leaf) for leaf in (chunk.tokens, chunk.lengths, chunk.ended))


def test_chunks_follow_each_other_with_rewritten_contexts():
    """After [CLS] 5, then one more each time; ids beyond the vocabulary become [UNK]."""
    seen = []
    write = chunk_writer(lambda last, _: jnp.where(last == CLS, 17, last + 1), seen, asked=[10, 6])
    texts = roll(write, [[CLS, 9, SEP], [CLS, SEP]], SCHEME, lengths=[10, 6])
    chunk = [17, 18, 19, UNK]  # 20 is none of the 20 pieces
    assert texts == [[*chunk, *chunk, 17, 18], [*chunk, 17, 18]]
    assert seen[0] == [[CLS, 9, SEP], [CLS, SEP]]
    assert seen[1] == [[CLS, 9, *chunk, SEP], [CLS, *chunk, SEP]]
    assert seen[2][0] == [*chunk[1:], *chunk, SEP]  # the last 8
    assert len(seen) == 3


def test_an_early_sep_is_thrown_away_and_counts():
    """Always 5 6 7 [SEP]: each chunk of 4 draws yields 3 tokens, and 10 draws end with 2 more."""
    table = (
        jnp.zeros(PADDED, jnp.int32).at[jnp.array([CLS, 5, 6, 7])].set(jnp.array([5, 6, 7, SEP]))
    )
    write = chunk_writer(lambda last, _: table[last], [], asked=[10])
    assert roll(write, [[CLS, SEP]], SCHEME, lengths=[10]) == [[5, 6, 7, 5, 6, 7, 5, 6]]


def test_lengths_near_the_end_of_int32_are_compared_exactly():
    """4/5 of them is far away, so an early [SEP] is discarded."""
    for asked in (2**29, 2**30, 2**31 - 1):
        write = chunk_writer(lambda last, _: jnp.where(last == CLS, 5, SEP), [], asked=[asked])
        tokens, lengths, ended = write([[CLS, SEP]], [0], 0, [True])
        assert (tokens[0][:1].tolist(), int(lengths[0]), bool(ended[0])) == ([5], 1, False)
    late = 2**31 - 1 - (2**31 - 1) // 5
    write = chunk_writer(lambda last, _: jnp.full_like(last, SEP), [], asked=[2**31 - 1])
    assert bool(write([[CLS, SEP]], [late], late, [True])[2][0])
    assert not bool(write([[CLS, SEP]], [late - 1], late, [True])[2][0])


def plainly(next_of, context, asked):
    """The scheme for one greedy text, draw by draw."""
    text, part, last = [], [], CLS
    for draw in range(asked):
        if draw and draw % SCHEME.chunk == 0:
            context = [*context[: context.index(SEP)], *part, SEP][-SCHEME.context_length :]
            part, last = [], CLS
        token = next_of(last, sum(context))
        token = UNK if token >= VOCAB else token
        if token == SEP:
            if len(text) > int(asked * 0.8):
                break
            continue
        part.append(token)
        text.append(token)
        last = token
    return text


def test_many_texts_as_the_scheme_written_out_plainly():
    rng = np.random.default_rng(0)
    rows = 300
    tables = rng.integers(UNK, PADDED, (rows, 5, PADDED))
    tables[rng.random(tables.shape) < 0.15] = SEP
    tables[tables == CLS] = 7
    asked = rng.integers(1, 22, rows).tolist()
    contexts = [[CLS, *rng.integers(5, VOCAB, rng.integers(0, 6)).tolist(), SEP] for _ in asked]
    on_device = jnp.asarray(tables)
    write = chunk_writer(
        lambda last, sums: on_device[jnp.arange(rows), sums % 5, last], [], asked=asked
    )
    found = roll(write, contexts, SCHEME, lengths=asked)
    cut, ended = 0, 0
    for row, text in enumerate(found):
        table = tables[row]
        expected = plainly(
            lambda last, total, t=table: int(t[total % 5, last]), contexts[row], asked[row]
        )
        assert text == expected, row
        cut += len(text) == asked[row]
        ended += len(text) < asked[row]
    assert cut > 50 and ended > 50


def test_a_thrown_away_draw_is_drawn_again_from_the_same_logits():
    """[SEP] and 7 are equally likely; sampled texts have only sevens, in about half the draws."""
    rows = 64

    def write(contexts, written, draws, active):
        def tokens_to_logits(tokens, cache, active):
            logits = jnp.full((rows, PADDED), -jnp.inf).at[:, jnp.array([SEP, 7])].set(0.0)
            return logits, cache

        chunk = write_chunk(
            tokens_to_logits,
            jnp.zeros(rows, jnp.int32),
            Sampling(
                row_rngs(jax.random.key(1), rows),
                jnp.ones(rows),
                jnp.zeros(rows, jnp.int32),
                jnp.ones(rows),
            ),
            SCHEME,
            written=jnp.array(written),
            asked=jnp.full(rows, 8),
            draws=jnp.full(rows, draws),
            active=jnp.array(active),
            candidates=PADDED,
        )
        return on_host(chunk)

    texts = roll(write, [[CLS, SEP]] * rows, SCHEME, lengths=[8] * rows)
    assert all(set(text) <= {7} for text in texts)
    counts = np.array([len(text) for text in texts])
    assert 3 < counts.mean() < 5 and counts.max() <= 8
