"""Splash attention, interpreted on the CPU, against dot attention with the same segments."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plug_jax.errors import PlugError
from plug_jax.ops import attention
from plug_jax.ops.splash_attention import splash_attention


def normal(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def segments(*rows: list[int]) -> jax.Array:
    """int32 [B, L]: segments 1, 2, ... of the given lengths; a negative length is padding."""
    return jnp.array(
        [np.repeat([i * (n > 0) for i, n in enumerate(row, 1)], np.abs(row)) for row in rows],
        jnp.int32,
    )


ENCODER = segments([70, 100, 60, -26], [256])
DECODER = segments([30, 50, 40, -8], [100, 20, -8])
# In the first row segment 2 has no keys; in the second no query has segment 2.
CROSS_KEYS = segments([200, -80, 104], [150, 234])


@pytest.mark.parametrize(
    ("query_segments", "key_segments", "causal"),
    [(ENCODER, ENCODER, False), (ENCODER, ENCODER, True), (DECODER, CROSS_KEYS, False)],
    ids=["encoder", "causal", "cross"],
)
def test_equals_dot_attention_with_gradients(
    query_segments: jax.Array, key_segments: jax.Array, causal: bool
) -> None:
    """Several blocks per row. Queries and keys without a counterpart get zeros."""
    (rows, queries), keys = query_segments.shape, key_segments.shape[1]
    mask = attention.segment_mask(query_segments, key_segments)
    if causal:
        mask &= attention.causal_mask(keys)
    # 256 does not divide the 384 keys of cross-attention: the next smaller block is 128.
    splash = functools.partial(
        splash_attention,
        query_segments=query_segments,
        key_segments=key_segments,
        causal=causal,
        block_size=256 if keys == 384 else 128,
        interpret=True,
    )
    arrays = [normal((rows, n, 2, 64), seed) for seed, n in enumerate((queries, keys, keys))]

    def with_gradients(attend: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        output, pull = jax.vjp(attend, *arrays)
        return (output, *pull(normal(output.shape, 9)))

    got = [np.asarray(a) for a in jax.jit(lambda: with_gradients(splash))()]
    dot = functools.partial(attention.dot_product_attention, mask=mask)
    for a, b in zip(got, with_gradients(dot), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    sees, seen = (np.asarray(mask.any(axis)[:, 0]) for axis in (3, 2))
    assert not sees.all() and sees.any()
    for array, used in zip(got, (sees, sees, seen, seen), strict=True):
        np.testing.assert_array_equal(array[~used], 0)


def test_softmax_of_bfloat16_is_float32() -> None:
    """Scores of about 30 in bfloat16 would be off by up to 0.125, their weights by 13%."""
    query, key, value = (normal((1, 128, 1, 64), seed).astype(jnp.bfloat16) for seed in range(3))
    ones = jnp.ones((1, 128), jnp.int32)
    got = splash_attention(query * 10, key, value, ones, ones, interpret=True)
    assert got.dtype == jnp.bfloat16
    query, key, value = (a.astype(jnp.float32) for a in (query * 10, key, value))
    expected = attention.dot_product_attention(query, key, value, mask=jnp.ones((1, 1, 1, 1), bool))
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8, atol=1e-3)


def test_lengths_must_be_multiples_of_128() -> None:
    row = jnp.ones((1, 200, 1, 64))
    ids = jnp.ones((1, 200), jnp.int32)
    with pytest.raises(PlugError, match=r"multiples of 128, not 200: change TASK_FEATURE_LENGTHS"):
        splash_attention(row, row, row, ids, ids, interpret=True)
