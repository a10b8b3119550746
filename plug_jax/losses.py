"""Cross-entropy and accuracy as (sum, weight) pairs, so that they add up over batches and hosts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def weighted_cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood, in nats.

    Args:
        logits: [..., V], any float; the softmax is taken in float32.
        labels: int32 [...].
        weights: [...], 0 where nothing is predicted.

    Returns:
        float32 scalars (sum of weighted losses, sum of weights).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    weights = weights.astype(jnp.float32)
    return jnp.sum(losses * weights), jnp.sum(weights)


def weighted_accuracy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Count of positions whose highest logit is the label; shapes as in `weighted_cross_entropy`.

    Returns:
        float32 scalars (weighted count of hits, sum of weights).
    """
    weights = weights.astype(jnp.float32)
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.sum(hits * weights), jnp.sum(weights)
