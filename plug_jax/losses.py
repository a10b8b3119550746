"""Cross-entropy and accuracy of predictions, with a bound on logits in memory.

Axis letters: B rows, P predictions per row, M model, V vocabulary (possibly sharded).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from plug_jax.ops.platform import on_one_cpu

# The fraction of a batch's positions for predictions that is seldom exceeded.
_OFTEN = 0.75


class Scores(NamedTuple):
    """Loss and correctness per prediction; both float32, shaped as labels."""

    losses: jax.Array  # negative log-likelihood of the label, in nats
    hits: jax.Array  # 1 if no logit exceeds the label's, else 0


def score(logits: jax.Array, labels: jax.Array) -> Scores:
    """Score float logits [...,V] against int32 labels [...], with a float32 softmax.

    Uses only reductions over V: with a sharded vocabulary, sums cross the mesh, logits do not.
    On one CPU device, the label's logit is looked up, which saves a pass through memory.
    """
    logits = logits.astype(jnp.float32)
    label_logits = (_looked_up if on_one_cpu() else _selected)(logits, labels)
    hits = label_logits >= jnp.max(lax.stop_gradient(logits), axis=-1)
    return Scores(jax.nn.logsumexp(logits, axis=-1) - label_logits, hits.astype(jnp.float32))


def _selected(logits: jax.Array, labels: jax.Array) -> jax.Array:
    is_label = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    return jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)


@jax.custom_jvp
def _looked_up(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`_selected`, bitwise. Its own gradient would be a scatter, a pass more than a selection."""
    indices = labels[..., None]
    return jnp.take_along_axis(logits, indices, axis=-1, mode="fill", fill_value=0.0)[..., 0]


@_looked_up.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, Any]) -> Any:
    return _looked_up(*primals), _selected(tangents[0], primals[1])


def chunked_score(
    project: Callable[[jax.Array], jax.Array], hidden: jax.Array, labels: jax.Array, *, chunk: int
) -> Scores:
    """`score(project(hidden), labels)`, with the logits of `chunk` positions per row at a time.

    The backward pass recomputes them. Float32 logits [B,P,V] of 8,192 positions over PLUG's 21,504
    pieces take 0.7 GB, and as much again for their gradient; chunking keeps them out of a step's
    peak memory.

    Args:
        project: [B,C,M] -> logits [B,C,V], any number of positions C.
        hidden: [B,P,M].
        labels: int32 [B,P].
        chunk: positions per row, at most: chunks are of equal size. 0, or at least P: all at once.
    """
    length = labels.shape[1]
    if not 0 < chunk < length:
        return score(project(hidden), labels)
    count = math.ceil(length / chunk)
    chunk = math.ceil(length / count)
    padding = count * chunk - length

    def split(x: jax.Array) -> jax.Array:  # [B,P,...] -> [P / chunk, B, chunk, ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], count, chunk, *x.shape[2:]).swapaxes(0, 1)

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(labels.shape[0], -1)[:, :length]

    @jax.checkpoint
    def body(_: None, slice_: tuple[jax.Array, jax.Array]) -> tuple[None, Scores]:
        return None, score(project(slice_[0]), slice_[1])

    _, scores = lax.scan(body, None, (split(hidden), split(labels)))
    return Scores(join(scores.losses), join(scores.hits))


def score_predictions(
    scores_of: Callable[[jax.Array, jax.Array], Scores],
    hidden: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
) -> Scores:
    """`scores_of(hidden, labels)` where `weights` are not 0; elsewhere scores may be 0.

    Rows have more positions P than are predicted on average. On one CPU device, predictions are
    put first, and what remains, a quarter of all, is scored only if a prediction is among it.

    Args:
        scores_of: [B,N,M], int32 [B,N] -> Scores [B,N], each position by itself, any N.
        hidden: [B,P,M].
        labels: int32 [B,P].
        weights: [B,P].
    """
    if not on_one_cpu():
        return scores_of(hidden, labels)
    order = jnp.argsort(weights == 0, axis=None, stable=True)
    rows, positions = labels.shape
    often = math.ceil(_OFTEN * positions)
    first, rest = (x.reshape(rows, -1) for x in jnp.split(order, [rows * often]))

    def taken(x: jax.Array, places: jax.Array) -> jax.Array:
        return x.reshape(order.size, *x.shape[2:])[places]

    scores = scores_of(taken(hidden, first), taken(labels, first))
    nothing = jnp.zeros(rest.shape, jnp.float32)
    others = lax.cond(
        jnp.any(taken(weights, rest) != 0),
        # What it needs for gradients is computed again: else it would be kept in either case.
        jax.checkpoint(scores_of),
        lambda *_: Scores(nothing, nothing),
        taken(hidden, rest),
        taken(labels, rest),
    )

    def restored(first: jax.Array, rest: jax.Array) -> jax.Array:
        moved = jnp.concatenate([first.ravel(), rest.ravel()])
        return jnp.zeros_like(moved).at[order].set(moved).reshape(labels.shape)

    return Scores(*map(restored, scores, others))


def weighted(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 scalars (weighted sum of values, sum of weights), which add up over batches."""
    weights = weights.astype(jnp.float32)
    return jnp.sum(values * weights), jnp.sum(weights)
