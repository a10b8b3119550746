import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plug_jax.decoding.sampling import Sampling, candidates_for, row_rngs, sample_token

DRAWS = 20_000
EXAMPLE = np.array([0.5, 0.3, 0.15, 0.05])


def sample(rngs, logits, *, candidates=None, draws=0, **options):
    """`sample_token` with the same options in every row."""
    rows, vocab_size = logits.shape
    temperature, top_k = options.pop("temperature", 1.0), options.pop("top_k", 0)
    sampling = Sampling(
        rngs=rngs,
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k),
        top_p=jnp.full(rows, options.pop("top_p", 1.0), jnp.float32),
    )
    assert not options
    candidates = candidates or candidates_for(
        temperature=temperature, top_k=top_k, vocab_size=vocab_size
    )
    return sample_token(logits, sampling, jnp.full(rows, draws), candidates=candidates)


def draw(probabilities, seed=0, forbidden=None, **options):
    """Counts of each id over DRAWS rows with these probabilities."""
    logits = jnp.log(jnp.asarray(probabilities))
    if forbidden is not None:
        logits = jnp.where(forbidden, -jnp.inf, logits)
    logits = jnp.broadcast_to(logits, (DRAWS, len(probabilities)))
    rngs = row_rngs(jax.random.key(seed), DRAWS)
    tokens = np.asarray(jax.jit(lambda rngs, logits: sample(rngs, logits, **options))(rngs, logits))
    assert tokens.shape == (DRAWS,) and tokens.dtype == np.int32
    return np.bincount(tokens, minlength=len(probabilities))


def assert_drawn_from(counts, expected):
    """Exactly the possible ids were drawn, with plausible counts (chi-square test, p > 1e-4)."""
    possible = np.asarray(expected) > 0
    np.testing.assert_array_equal(counts > 0, possible)
    if possible.sum() > 1:
        expected = np.asarray(expected)
        assert stats.chisquare(counts[possible], expected[possible] * DRAWS).pvalue > 1e-4


def brute_force(probabilities, *, temperature=1.0, top_k=0, top_p=1.0, forbidden=None):
    """The sampling distribution, computed step by step."""
    allowed = [i for i in range(len(probabilities)) if forbidden is None or not forbidden[i]]
    weights = {i: probabilities[i] ** (1 / temperature) for i in allowed}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))[: top_k or None]
    total = sum(weights[i] for i in ranked)
    nucleus, mass = [], 0.0
    for i in ranked:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    kept = np.array([weights[i] if i in nucleus else 0.0 for i in range(len(probabilities))])
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_k": 3, "top_p": 0.52}, [1, 0, 0, 0]),
        ({"top_k": 2, "forbidden": np.array([True, False, False, False])}, [0, 2 / 3, 1 / 3, 0]),
    ],
)
def test_the_examples_of_the_docstring(options, expected):
    assert_drawn_from(draw(EXAMPLE, **options), expected)
    np.testing.assert_allclose(brute_force(EXAMPLE, **options), expected, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 2.0, "top_k": 4},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.6},
        {"top_k": 100},
        {"top_p": 0.999},
        {"temperature": 0.9, "top_k": 3, "forbidden": np.array([0, 1, 0, 0, 1, 0, 0], bool)},
    ],
    ids=str,
)
def test_draws_follow_the_brute_force_distribution(options):
    probabilities = np.random.default_rng(3).dirichlet(np.ones(7))
    assert_drawn_from(draw(probabilities, **options), brute_force(probabilities, **options))


def test_temperature_divides_the_logits_before_top_p():
    # At temperature 4 the first id has 0.41 of the mass, so 0.5 needs two ids; at 1 it needs one.
    probabilities = np.array([0.8, 0.15, 0.04, 0.01])
    assert (draw(probabilities, top_p=0.5) > 0).sum() == 1
    assert (draw(probabilities, top_p=0.5, temperature=4.0) > 0).sum() == 2


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (np.finfo(np.float32).tiny, [0.5, 0.5, 0, 0]),  # equal ones share, and nothing else remains
        (1 / np.finfo(np.float32).tiny, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_extreme_temperatures_draw_from_their_limits(temperature, expected):
    likely = np.array([0.4, 0.4, 0.15, 0.05]) * 1e30  # logits of 70, which overflow when divided
    assert_drawn_from(draw(likely, temperature=temperature), expected)
    forbidden = np.array([False, False, False, False, True])
    counts = draw([*likely, 1e31], temperature=temperature, forbidden=forbidden)
    assert_drawn_from(counts, [*expected, 0])


def test_greedy_takes_the_most_likely_id_and_the_lower_of_equals():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 0.0, 1.0, 1.0]])
    rngs = row_rngs(jax.random.key(0), 2)
    assert sample(rngs, logits, temperature=0).tolist() == [1, 0]
    # In a batch with sampled rows it considers more candidates.
    assert sample(rngs, logits, temperature=0, candidates=4).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_of_equal_ids_the_lower_ones():
    assert_drawn_from(draw([0.25] * 4, top_k=2), [0.5, 0.5, 0, 0])
    assert_drawn_from(draw([0.25] * 4, top_p=0.6), [1 / 3, 1 / 3, 1 / 3, 0])


def test_a_forbidden_id_never_comes_however_likely_it_is():
    for options in ({}, {"top_k": 1}, {"top_p": 0.1}, {"top_k": 3, "top_p": 0.9}, {"top_k": 9}):
        counts = draw([0.01, 0.98, 0.01], forbidden=np.array([False, True, False]), **options)
        assert counts[1] == 0


def test_the_seed_decides_and_a_row_does_not_depend_on_the_others():
    logits = jax.random.normal(jax.random.key(7), (64, 50))
    rngs = row_rngs(jax.random.key(1), 64)
    tokens = sample(rngs, logits, top_k=20)
    assert tokens.tolist() == sample(rngs, logits, top_k=20).tolist()
    assert tokens.tolist() != sample(rngs, logits, top_k=20, draws=1).tolist()
    other = sample(row_rngs(jax.random.key(2), 64), logits, top_k=20)
    assert tokens.tolist() != other.tolist()
    few = sample(row_rngs(jax.random.key(1), 8)[::-1], logits[:8][::-1], top_k=20)
    assert tokens[:8][::-1].tolist() == few.tolist()


def test_how_many_candidates_are_looked_at_does_not_change_the_draw():
    logits = 2 * jax.random.normal(jax.random.key(7), (256, 300))
    rngs = row_rngs(jax.random.key(1), 256)
    for options in ({"top_k": 20}, {"top_k": 20, "top_p": 0.7}):
        few = sample(rngs, logits, candidates=128, **options)
        assert few.tolist() == sample(rngs, logits, candidates=300, **options).tolist()
        assert len(set(few.tolist())) > 50


def test_every_row_draws_by_its_own_options():
    logits = jnp.log(jnp.broadcast_to(jnp.asarray(EXAMPLE), (DRAWS, 4)))
    kinds = jnp.arange(DRAWS) % 4
    sampling = Sampling(
        rngs=row_rngs(jax.random.key(0), DRAWS),
        temperature=jnp.asarray([0.0, 1.0, 1.0, 0.5])[kinds],
        top_k=jnp.asarray([0, 2, 0, 0])[kinds],
        top_p=jnp.asarray([1.0, 1.0, 0.9, 1.0])[kinds],
    )
    tokens = np.asarray(sample_token(logits, sampling, jnp.zeros(DRAWS, jnp.int32), candidates=4))
    halves = EXAMPLE**2 / (EXAMPLE**2).sum()
    for kind, expected in enumerate(
        [[1, 0, 0, 0], [0.625, 0.375, 0, 0], np.array([0.5, 0.3, 0.15, 0]) / 0.95, halves]
    ):
        counts = np.bincount(tokens[kinds == kind], minlength=4)
        np.testing.assert_array_equal(counts > 0, np.asarray(expected) > 0)
        possible = np.asarray(expected) > 0
        if possible.sum() > 1:
            wanted = np.asarray(expected)[possible] * counts.sum()
            assert stats.chisquare(counts[possible], wanted).pvalue > 1e-4


def test_candidates_come_in_few_sizes():
    def count(temperature, top_k, vocab_size=21504):
        return candidates_for(temperature=temperature, top_k=top_k, vocab_size=vocab_size)

    assert [count(0, 0), count(0, 50), count(1, 1), count(0.5, 128)] == [1, 1, 128, 128]
    assert [count(1, 0), count(1, 129), count(1, 20, 100)] == [21504, 21504, 100]


def test_rows_with_equal_logits_draw_apart():
    counts = draw([1 / 8] * 8)
    assert_drawn_from(counts, [1 / 8] * 8)


def test_a_number_just_below_one_draws_the_last_that_is_kept(monkeypatch):
    """Multiplied by the sum of the kept probabilities, it may round to that sum."""
    just_below = jnp.float32(np.nextafter(np.float32(1), np.float32(0)))
    monkeypatch.setattr(jax.random, "uniform", lambda key: just_below)
    logits = jax.random.normal(jax.random.key(0), (500, 40))
    rngs = row_rngs(jax.random.key(1), 500)
    drawn = sample(rngs, logits, top_k=7)
    assert drawn.tolist() == jnp.argsort(-logits, axis=-1)[:, 6].tolist()
