"""Dot-product attention beside a plain softmax, with dropout and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.ops.attention import dot_product_attention, segment_mask
from plug_jax.ops.dropout import dropout

BATCH, LENGTH, KEYS, HEADS, SIZE = 2, 5, 256, 3, 8
MASK = jnp.arange(KEYS)[None, None, None] < 250


def arrays(dtype="float32"):
    shapes = [(BATCH, LENGTH, HEADS, SIZE), *[(BATCH, KEYS, HEADS, SIZE)] * 2]
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def plain(query, key, value):
    scores = np.einsum("bqhk,bshk->bhqs", query, key) / np.sqrt(SIZE)
    weights = np.where(MASK, np.exp(scores), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqs,bshk->bqhk", weights, value)


def test_it_is_the_softmax_over_the_visible_keys():
    found = dot_product_attention(*arrays(), mask=MASK)
    np.testing.assert_allclose(found, plain(*map(np.asarray, arrays())), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dropout_rng", [None, jax.random.key(1)])
def test_bfloat16_stays_bfloat16(dropout_rng):
    found = dot_product_attention(
        *arrays("bfloat16"), mask=MASK, dropout_rate=0.1, dropout_rng=dropout_rng
    )
    assert found.dtype == jnp.bfloat16
    if dropout_rng is None:
        expected = plain(*(np.asarray(a, np.float32) for a in arrays("bfloat16")))
        np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0.02, atol=0.01)


def test_dropout_is_on_each_weight_and_keeps_the_mean():
    """With equal scores and values of one-hot keys, the output is the weights themselves."""
    query = jnp.zeros((1, LENGTH, HEADS, KEYS))
    value = jnp.broadcast_to(jnp.eye(KEYS)[None, :, None], (1, KEYS, HEADS, KEYS))
    mask = jnp.ones((1, 1, 1, 1), bool)

    def weights(rng):
        return dot_product_attention(
            query, value, value, mask=mask, dropout_rate=0.25, dropout_rng=rng
        )

    found = np.asarray(jax.vmap(weights)(jax.random.split(jax.random.key(2), 8))) * KEYS
    kept = found > 0
    np.testing.assert_allclose(found[kept], 1 / 0.75, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / kept.size)
    by_query = kept.reshape(8 * LENGTH * HEADS, KEYS)  # all differ: no axis shares its numbers
    assert len(np.unique(by_query, axis=0)) == len(by_query)


def padded_mask():
    """Of rows of two examples each, the second row with padding, which sees nothing."""
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 2, 2, 0, 0]])
    return segment_mask(segments, segments)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_are_those_of_the_softmax(rate):
    """And padding has none, whatever is upstream of it."""
    mask, rng = padded_mask(), jax.random.key(3)
    keys = jax.random.split(jax.random.key(1), 4)
    *inputs, upstream = (jax.random.normal(key, (2, 7, HEADS, SIZE)) for key in keys)

    def ours(query, key, value):
        return dot_product_attention(
            query, key, value, mask=mask, dropout_rate=rate, dropout_rng=rng if rate else None
        )

    def by_softmax(query, key, value):
        scores = jnp.einsum("bqhk,bshk->bhqs", query, key) / np.sqrt(SIZE)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30))
        if rate:
            weights = dropout(weights, rate, rng)
        output = jnp.einsum("bhqs,bshk->bqhk", weights, value)
        return jnp.where(mask.any(-1).swapaxes(1, 2)[..., None], output, 0)

    found, pull = jax.vjp(ours, *inputs)
    expected, expected_pull = jax.vjp(by_softmax, *inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    gradients = pull(upstream)
    for gradient, of_softmax in zip(gradients, expected_pull(upstream), strict=True):
        np.testing.assert_allclose(gradient, of_softmax, rtol=1e-4, atol=1e-5)
        assert gradient[1, :5].any() and not gradient[1, 5:].any()


def test_gradients_in_bfloat16_are_near_those_in_float32():
    inputs = arrays("bfloat16")

    def gradients(*inputs):
        def total(*inputs):
            return (dot_product_attention(*inputs, mask=MASK).astype(jnp.float32) ** 2).sum()

        return jax.grad(total, (0, 1, 2))(*inputs)

    exact = gradients(*(a.astype(jnp.float32) for a in inputs))
    for found, expected in zip(gradients(*inputs), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        difference = np.linalg.norm(found.astype(jnp.float32) - expected)
        assert difference < 0.02 * np.linalg.norm(expected)
