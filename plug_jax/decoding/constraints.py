"""Logit constraints per row: forbidden and forced tokens, lengths, repetition penalties.

Axis letters: B rows, N room for new tokens, V vocabulary, F forced places.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

MAX_NGRAM = 8  # the longest n-gram whose repetition can be prevented

FREE = -1  # in `forced`: not forced


@flax.struct.dataclass
class Constraints:
    """One entry per row, so that all requests share a compiled program."""

    min_length: jax.Array  # int32 [B]: tokens before the end token may come
    max_length: jax.Array  # int32 [B]: the row ends after this many tokens, at most N
    repetition_penalty: jax.Array  # float32 [B]: 1 is none
    no_repeat_ngram: jax.Array  # int32 [B]: length of n-grams that may not repeat, 0 is none
    forbidden: jax.Array  # bool [B, V]: ids never generated
    forced: jax.Array  # int32 [B, F]: required first tokens, or FREE


def constrain(
    logits: jax.Array,
    constraints: Constraints,
    *,
    tokens: jax.Array,
    lengths: jax.Array,
    end_token: int,
    penalties: bool,
) -> jax.Array:
    """Logits float32 [B, V] of the next token, with -inf for forbidden tokens.

    Applied in Hugging Face's order: the repetition penalty, repeated n-grams, the minimum length,
    forbidden tokens; a forced token overrides all of them. If nothing is left, only the end token
    is allowed.

    Args:
      logits: the model's.
      constraints: of each row.
      tokens: int32 [B, N], the rows' tokens so far.
      lengths: int32 [B], number of valid tokens.
      end_token: the id that ends a row.
      penalties: static; whether any row uses the penalty or n-gram blocking. Otherwise `tokens` are
        not read.
    """
    ids = jnp.arange(logits.shape[-1])
    if penalties:
        logits = _penalize(logits, tokens, lengths, constraints.repetition_penalty)
        logits = jnp.where(
            _completes_ngram(tokens, lengths, constraints.no_repeat_ngram, len(ids)),
            -jnp.inf,
            logits,
        )
    too_short = (lengths < constraints.min_length)[:, None] & (ids == end_token)
    logits = jnp.where(constraints.forbidden | too_short, -jnp.inf, logits)
    nothing_left = jnp.all(logits == -jnp.inf, axis=-1, keepdims=True)
    logits = jnp.where(nothing_left & (ids == end_token), 0.0, logits)
    if not constraints.forced.shape[1]:
        return logits
    place = jnp.minimum(lengths, constraints.forced.shape[1] - 1)
    forced = jnp.take_along_axis(constraints.forced, place[:, None], axis=1)  # [B, 1]
    forced = jnp.where(lengths[:, None] < constraints.forced.shape[1], forced, FREE)
    return jnp.where(forced == FREE, logits, jnp.where(ids == forced, 0.0, -jnp.inf))


def _penalize(
    logits: jax.Array, tokens: jax.Array, lengths: jax.Array, penalty: jax.Array
) -> jax.Array:
    """Divide positive logits of generated tokens by the penalty, multiply negative ones.

    CTRL's penalty (arXiv 1909.05858) in Hugging Face's form.
    """
    written = jnp.arange(tokens.shape[1]) < lengths[:, None]  # [B, N]
    seen = jax.vmap(lambda row, ids, real: row.at[ids].max(real))(
        jnp.zeros(logits.shape, bool), tokens, written
    )
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def _completes_ngram(
    tokens: jax.Array, lengths: jax.Array, n: jax.Array, vocab_size: int
) -> jax.Array:
    """bool [B, V]: ids that would repeat an earlier n-gram (n int32 [B], 0 is none).

    Row [5, 6, 7, 5, 6] with n = 3: 7, because 5 6 7 is there and 5 6 are the last two.
    """
    places = jnp.arange(tokens.shape[1])
    # agreeing[b, i]: how many tokens before position i equal the row's last tokens, one by one.
    agreeing = jnp.zeros(tokens.shape, jnp.int32)
    agrees = jnp.ones(tokens.shape, bool)
    for back in range(1, MAX_NGRAM):
        last = jnp.take_along_axis(tokens, jnp.maximum(lengths - back, 0)[:, None], axis=1)
        agrees &= (jnp.roll(tokens, back, axis=1) == last) & (places >= back)
        agreeing += agrees
    repeated = (agreeing >= n[:, None] - 1) & (places < lengths[:, None]) & (n > 0)[:, None]
    return jax.vmap(lambda row, ids, flags: row.at[ids].max(flags))(
        jnp.zeros((len(tokens), vocab_size), bool), tokens, repeated
    )
