"""Token-by-token generation with a cached decoder, resumable after any number of steps.

`start` makes the state of a batch of rows, `advance` generates more tokens: all of them in a plain
call, a few at a time for streaming or continuous batching.

Axis letters: B rows, N room for new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from plug_jax.decoding.constraints import Constraints, constrain
from plug_jax.decoding.sampling import Sampling, sample_token

Cache = TypeVar("Cache")
# (tokens int32 [B], cache, active bool [B]) -> (logits float32 [B, V] of the next token, the new
# cache). Rows that are not active have ended: they must not grow, and their logits are not read.
TokensToLogits = Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


@flax.struct.dataclass
class Decoding:
    """A batch of texts being generated; `tokens[b, :lengths[b]]` is row b's text so far."""

    tokens: jax.Array  # int32 [B, N]; the end token from lengths[b] on once the row has ended
    log_probs: jax.Array  # float32 [B, N], the model's own, for each token and the end token
    lengths: jax.Array  # int32 [B]: tokens before the end token
    ended: jax.Array  # bool [B]: rows with the end token or at their maximum length
    stopped: jax.Array  # bool [B]: rows with the end token
    last_tokens: jax.Array  # int32 [B]: the decoder's next input
    cache: Any  # the decoder's, from `tokens_to_logits`


def start(cache: Any, *, start_tokens: jax.Array, max_new_tokens: int, end_token: int) -> Decoding:
    """Initial state: empty texts.

    Args:
      cache: the decoder's state before `start_tokens`, with room for `max_new_tokens` tokens.
      start_tokens: int32 [B], the first token each row reads ([CLS] for PLUG), not part of a text.
      max_new_tokens: N, room for texts; `Constraints.max_length` may be less.
      end_token: fills the room after a text.
    """
    rows = start_tokens.shape[0]
    return Decoding(
        tokens=jnp.full((rows, max_new_tokens), end_token, jnp.int32),
        log_probs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        lengths=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        stopped=jnp.zeros(rows, bool),
        last_tokens=start_tokens.astype(jnp.int32),
        cache=cache,
    )


def advance(
    tokens_to_logits: TokensToLogits[Cache],
    decoding: Decoding,
    constraints: Constraints,
    sampling: Sampling,
    *,
    steps: jax.Array | int,
    end_token: int,
    candidates: int,
    penalties: bool,
) -> Decoding:
    """Generate up to `steps` more tokens in every row that has not ended; stop when all have.

    Call it inside `jax.jit`, with the parameters of `tokens_to_logits` as an argument of the
    compiled function. The number of calls does not change a text.

    Args:
      tokens_to_logits: see `TokensToLogits`.
      decoding: from `start` or an earlier call.
      constraints, sampling: of each row, the same in all calls.
      steps: int32 [], may be traced.
      end_token: the id that ends a row ([SEP] for PLUG).
      candidates: static, see `sample_token`.
      penalties: static, see `constrain`.
    """
    places = jnp.arange(decoding.tokens.shape[1])

    def unfinished(carry: tuple[jax.Array, Decoding]) -> jax.Array:
        done, state = carry
        return (done < steps) & ~jnp.all(state.ended)

    def write_one(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        done, state = carry
        active = ~state.ended
        logits, cache = tokens_to_logits(state.last_tokens, state.cache, active)
        allowed = constrain(
            logits,
            constraints,
            tokens=state.tokens,
            lengths=state.lengths,
            end_token=end_token,
            penalties=penalties,
        )
        drawn = sample_token(allowed, sampling, state.lengths, candidates=candidates)
        log_probs = log_probability(logits, drawn)
        here = active[:, None] & (places == state.lengths[:, None])  # [B, N]
        stops = active & (drawn == end_token)
        lengths = state.lengths + (active & ~stops)
        return done + 1, Decoding(
            tokens=jnp.where(here, drawn[:, None], state.tokens),
            log_probs=jnp.where(here, log_probs[:, None], state.log_probs),
            lengths=lengths,
            ended=state.ended | stops | (lengths >= constraints.max_length),
            stopped=state.stopped | stops,
            last_tokens=jnp.where(active, drawn, state.last_tokens),
            cache=cache,
        )

    # A row with maximum length 0 has ended before it begins.
    decoding = dataclasses.replace(decoding, ended=decoding.ended | (constraints.max_length == 0))
    return jax.lax.while_loop(unfinished, write_one, (jnp.int32(0), decoding))[1]


def has_numbers(logits: jax.Array) -> jax.Array:
    """bool [B]: whether logits [B, V] are valid: no NaN, no +inf, not all -inf."""
    return jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))


def log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32 [B]: log softmax(logits [B, V]) at int32 tokens [B]; NaN without `has_numbers`."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
