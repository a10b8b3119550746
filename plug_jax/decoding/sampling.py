"""Sampling of the next token from logits.

Axis letters: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Sampling:
    """Sampling settings, one entry per row, so that all requests share a compiled program."""

    rngs: jax.Array  # keys [B]: token t of a row is drawn with fold_in(its key, t)
    temperature: jax.Array  # float32 [B]: 0 is greedy
    top_k: jax.Array  # int32 [B]: sample from the k likeliest, 0 is all
    top_p: jax.Array  # float32 [B]: in (0, 1], sample from the likeliest with this much probability


def row_rngs(rng: jax.Array, rows: int) -> jax.Array:
    """Independent keys [rows]; key r depends on `rng` and r, not on how many rows there are."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, jnp.arange(rows))


def sample_token(
    logits: jax.Array, sampling: Sampling, draws: jax.Array, *, candidates: int
) -> jax.Array:
    """Sample one token per row, int32 [B], from a truncated `softmax(logits / temperature)`.

    The order is that of the released PLUG code and Hugging Face: temperature, then the `top_k`
    likeliest tokens, then of these, renormalised, the smallest set whose probability reaches
    `top_p`. For equal logits the lower id counts as likelier, so exactly `top_k` tokens remain.

    With logits = log [0.5, 0.3, 0.15, 0.05] and temperature 1, the probabilities of the draw are
      top_k=2:            [0.625, 0.375, 0, 0]
      top_p=0.7:          [0.625, 0.375, 0, 0]    (0.5 alone does not reach 0.7)
      top_k=3, top_p=0.52: [1, 0, 0, 0]           (0.5 / 0.95 reaches 0.52)

    A row inverts its cumulative probabilities, likeliest first, at one uniform number, so its draw
    depends neither on other rows nor on `candidates`.

    Args:
      logits: float32 [B, V]; -inf is never drawn, and some id must be above it.
      sampling: of each row.
      draws: int32 [B], how many tokens each row has drawn before.
      candidates: static; how many of the likeliest tokens are considered. No row's `top_k` may
        exceed it (or be 0, meaning all, unless it is V), see `candidates_for`.
    """
    values, ids = jax.lax.top_k(logits, candidates)  # [B, C], likeliest first
    if candidates == 1:
        return ids[:, 0].astype(jnp.int32)
    greedy = sampling.temperature == 0
    # Subtract the largest, so that no temperature turns a candidate's logit into infinity.
    values = (values - values[:, :1]) / jnp.where(greedy, 1.0, sampling.temperature)[:, None]
    count = jnp.where(sampling.top_k > 0, sampling.top_k, candidates)
    values = jnp.where(jnp.arange(candidates) < count[:, None], values, -jnp.inf)
    probabilities = jax.nn.softmax(values, axis=-1)
    mass = jnp.cumsum(probabilities, axis=-1)
    kept = (mass - probabilities < sampling.top_p[:, None]) & (values > -jnp.inf)
    total = jnp.max(jnp.where(kept, mass, 0.0), axis=-1)
    uniform = jax.vmap(lambda rng, draw: jax.random.uniform(jax.random.fold_in(rng, draw)))(
        sampling.rngs, draws
    )
    # The first candidate whose cumulative probability exceeds the number; rounding of the sum must
    # not select one beyond the last kept.
    choice = jnp.sum(mass <= (uniform * total)[:, None], axis=-1)
    choice = jnp.minimum(choice, jnp.sum(kept, axis=-1) - 1)
    choice = jnp.where(greedy, 0, choice)
    return jnp.take_along_axis(ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


_FEW = 128


def candidates_for(*, temperature: float, top_k: int, vocab_size: int) -> int:
    """How many candidates a request needs: 1 (greedy), 128, or the vocabulary.

    Few values mean few compiled programs; a batch uses the largest of its rows.
    """
    if temperature == 0:
        return 1
    return _FEW if 0 < top_k <= _FEW < vocab_size else vocab_size
