import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plug_jax.decoding.sampling import row_rngs, sample_token
from plug_jax.errors import PlugError

DRAWS = 20_000
EXAMPLE = np.array([0.5, 0.3, 0.15, 0.05])


def draw(probabilities, seed=0, **options):
    """How often each id came, of DRAWS rows that all have these probabilities."""
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(probabilities)), (DRAWS, len(probabilities)))
    rngs = row_rngs(jax.random.key(seed), DRAWS)
    sample = jax.jit(lambda rngs, logits: sample_token(rngs, logits, **options))
    tokens = np.asarray(sample(rngs, logits))
    assert tokens.shape == (DRAWS,) and tokens.dtype == np.int32
    return np.bincount(tokens, minlength=len(probabilities))


def assert_drawn_from(counts, expected):
    """Exactly the possible ids came up, as often as a chi-square test believes (p > 1e-4)."""
    possible = np.asarray(expected) > 0
    np.testing.assert_array_equal(counts > 0, possible)
    if possible.sum() > 1:
        expected = np.asarray(expected)
        assert stats.chisquare(counts[possible], expected[possible] * DRAWS).pvalue > 1e-4


def brute_force(probabilities, *, temperature=1.0, top_k=0, top_p=1.0, forbidden=None):
    """The distribution of the draw, one plain step after the other."""
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
    # At temperature 4 the first id holds 0.41 of the mass, so 0.5 needs two ids; at 1 it needs one.
    probabilities = np.array([0.8, 0.15, 0.04, 0.01])
    assert (draw(probabilities, top_p=0.5) > 0).sum() == 1
    assert (draw(probabilities, top_p=0.5, temperature=4.0) > 0).sum() == 2


def test_greedy_takes_the_most_likely_allowed_id_and_the_lower_of_equals():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 0.0, 1.0, 1.0]])
    rngs = row_rngs(jax.random.key(0), 2)
    assert sample_token(rngs, logits, temperature=0).tolist() == [1, 0]
    forbidden = jnp.array([True, True, False, False])
    assert sample_token(rngs, logits, temperature=0, forbidden=forbidden).tolist() == [2, 2]


def test_top_k_keeps_exactly_k_of_equal_ids_the_lower_ones():
    assert_drawn_from(draw([0.25] * 4, top_k=2), [0.5, 0.5, 0, 0])
    assert_drawn_from(draw([0.25] * 4, top_p=0.6), [1 / 3, 1 / 3, 1 / 3, 0])


def test_a_forbidden_id_never_comes_however_likely_it_is():
    for options in ({}, {"top_k": 1}, {"top_p": 0.1}, {"top_k": 3, "top_p": 0.9}, {"top_k": 9}):
        counts = draw([0.01, 0.98, 0.01], forbidden=np.array([False, True, False]), **options)
        assert counts[1] == 0


def test_ids_may_be_forbidden_per_row():
    logits = jnp.array([[2.0, 1.0, 0.0]] * 2)
    forbidden = jnp.array([[True, False, False], [False, True, True]])
    rngs = row_rngs(jax.random.key(0), 2)
    assert sample_token(rngs, logits, temperature=0, forbidden=forbidden).tolist() == [1, 0]


def test_the_seed_decides_and_a_row_does_not_depend_on_the_others():
    logits = jax.random.normal(jax.random.key(7), (64, 50))
    rngs = row_rngs(jax.random.key(1), 64)
    tokens = sample_token(rngs, logits, top_k=20)
    assert tokens.tolist() == sample_token(rngs, logits, top_k=20).tolist()
    other = sample_token(row_rngs(jax.random.key(2), 64), logits, top_k=20)
    assert tokens.tolist() != other.tolist()
    few = sample_token(row_rngs(jax.random.key(1), 8)[::-1], logits[:8][::-1], top_k=20)
    assert tokens[:8][::-1].tolist() == few.tolist()


def test_rows_with_equal_logits_draw_apart():
    counts = draw([1 / 8] * 8)
    assert_drawn_from(counts, [1 / 8] * 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(PlugError, match=message):
        sample_token(row_rngs(jax.random.key(0), 1), jnp.zeros((1, 3)), **options)
