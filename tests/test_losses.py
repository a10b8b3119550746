"""Cross-entropy: worked examples, and chunks that change only memory use."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plug_jax import losses


def test_worked_example():
    # softmax of [0, ln 3] is [1/4, 3/4]
    scores = losses.score(jnp.array([[[0.0, np.log(3)], [0.0, np.log(3)]]]), jnp.array([[0, 1]]))
    np.testing.assert_allclose(scores.losses, [[np.log(4), np.log(4 / 3)]], rtol=1e-6)
    np.testing.assert_array_equal(scores.hits, [[0, 1]])
    total, weight = losses.weighted(scores.losses, jnp.array([[0, 2]]))
    np.testing.assert_allclose([total, weight], [2 * np.log(4 / 3), 2])


@pytest.mark.parametrize("label", [0, 1, 3, 4])
def test_looking_a_label_up_is_selecting_it(monkeypatch, label):
    """Bitwise, with gradients; also for what is no label (4), which has logit 0."""
    logits = jnp.array([[0.5, -0.0, 7.0, -2.0], [1.0, jnp.nan, jnp.inf, 4.0]])
    labels = jnp.array([label, label])

    def scores(logits):
        scores = losses.score(logits, labels)
        return scores.losses, scores.hits

    results = []
    for one_cpu in (True, False):
        monkeypatch.setattr(losses, "on_one_cpu", lambda one_cpu=one_cpu: one_cpu)
        values, pull = jax.vjp(scores, logits)
        results.append((*values, *pull((jnp.array([2.0, 3.0]), jnp.zeros(2)))))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_large_logits_stay_finite():
    scores = losses.score(jnp.array([[1e4, -1e4]], jnp.bfloat16), jnp.array([1]))
    assert scores.losses.dtype == jnp.float32
    np.testing.assert_allclose(scores.losses, [2e4], rtol=1e-2)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(4, 10, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(24, 8)), jnp.float32)
    return hidden, table, jnp.asarray(rng.integers(0, 24, (4, 10)), jnp.int32)


def total(hidden, table, labels, chunk):
    scores = losses.chunked_score(lambda h: h @ table.T, hidden, labels, chunk=chunk)
    weights = jnp.arange(40.0).reshape(4, 10)
    return losses.weighted(scores.losses, weights)[0], scores


@pytest.mark.parametrize("chunk", [1, 4, 5, 9, 10, 11])
def test_chunks_change_neither_scores_nor_gradients(problem, chunk):
    hidden, table, labels = problem
    (_, scores), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(*problem, chunk)
    (_, whole), whole_grads = jax.value_and_grad(total, (0, 1), has_aux=True)(*problem, 0)
    reference = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, labels)
    np.testing.assert_allclose(scores.losses, reference, rtol=1e-5)
    np.testing.assert_array_equal(scores.hits, jnp.argmax(hidden @ table.T, -1) == labels)
    np.testing.assert_allclose(scores.losses, whole.losses, rtol=1e-6)
    for one, other in zip(grads, whole_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_no_more_logits_are_held_than_the_chunk_s(problem):
    """Neither forward nor backward has an array of all positions by the vocabulary."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda *a: total(*a, 2)[0], (0, 1)))(*problem)
    shapes = {tuple(v.aval.shape) for v in _variables(jaxpr.jaxpr)}
    assert (4, 2, 24) in shapes
    assert not any(np.prod(s) >= 4 * 10 * 24 for s in shapes)


def test_chunks_are_of_equal_size(problem):
    """10 positions in chunks of at most 8 are two of 5, without padding."""
    jaxpr = jax.make_jaxpr(lambda *a: total(*a, 8)[0])(*problem)
    shapes = {tuple(v.aval.shape) for v in _variables(jaxpr.jaxpr)}
    assert {s[1] for s in shapes if len(s) == 3 and s[2] == 24} == {5}


def _variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _variables(sub)


@pytest.mark.parametrize("one_cpu", [True, False])
@pytest.mark.parametrize("predictions", [0, 9, 32, 33, 40])
def test_positions_without_a_prediction_change_nothing(problem, monkeypatch, predictions, one_cpu):
    """There is room for 40; up to 32, the other 8 are not scored on one CPU device."""
    hidden, table, labels = problem
    weights = jnp.asarray(np.random.default_rng(1).permutation(np.arange(40) < predictions))
    weights = weights.reshape(4, 10) * 2.0

    def loss(hidden, table, part=losses.score_predictions):
        scores = part(lambda x, y: losses.score(x @ table.T, y), hidden, labels, weights)
        return losses.weighted(scores.losses, weights)[0], losses.weighted(scores.hits, weights)[0]

    monkeypatch.setattr(losses, "on_one_cpu", lambda: one_cpu)
    got, grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)
    every = functools.partial(loss, part=lambda scores_of, x, y, _: scores_of(x, y))
    want, want_grads = jax.value_and_grad(every, (0, 1), has_aux=True)(hidden, table)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for one, other in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_where_nothing_is_predicted_nothing_is_computed(problem, monkeypatch):
    """Of [4,10] positions the first three quarters are scored, [4,8]; the rest only if needed."""
    monkeypatch.setattr(losses, "on_one_cpu", lambda: True)
    hidden, table, labels = problem
    shapes = []

    def scores_of(hidden, labels):
        jax.debug.callback(lambda *_: shapes.append(labels.shape), labels)
        return losses.score(hidden @ table.T, labels)

    for predictions, scored in ((32, [(4, 8)]), (33, [(4, 2), (4, 8)])):
        weights = jnp.flip(jnp.arange(40) < predictions).reshape(4, 10)
        losses.score_predictions(scores_of, hidden, labels, weights)
        jax.effects_barrier()
        assert sorted(shapes) == scored
        shapes.clear()


def test_a_sharded_vocabulary_is_never_gathered(problem):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"))
    P = jax.sharding.PartitionSpec
    specs = (P("data"), P("tensor"), P("data"))
    shardings = tuple(jax.NamedSharding(mesh, s) for s in specs)
    step = jax.jit(jax.value_and_grad(lambda *a: total(*a, 5)[0], (0, 1)), in_shardings=shardings)
    text = step.lower(*problem).compile().as_text()
    assert "all-gather" not in text
    value, grads = step(*map(jax.device_put, problem, shardings))
    expected, expected_grads = jax.value_and_grad(lambda *a: total(*a, 0)[0], (0, 1))(*problem)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
