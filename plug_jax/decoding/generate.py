"""Write text one token at a time with a cached decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from plug_jax.decoding.sampling import sample_token
from plug_jax.errors import PlugError

Cache = TypeVar("Cache")
TokensToLogits = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class Generated(NamedTuple):
    """What `generate` wrote; of row b, `tokens[b, :lengths[b]]` is the text."""

    tokens: jax.Array  # int32 [B, max_new_tokens]; the end token from lengths[b] on
    lengths: jax.Array  # int32 [B]; tokens before the end token, max_new_tokens if there was none


class _LoopState(NamedTuple):
    """Carried through the loop; N = max_new_tokens."""

    step: jax.Array  # int32 []: tokens decided so far in every row that has not ended
    last_tokens: jax.Array  # int32 [B]: what the decoder reads next
    tokens: jax.Array  # int32 [B, N]: what was written, the end token elsewhere
    lengths: jax.Array  # int32 [B]: tokens written before the end token
    ended: jax.Array  # bool [B]: rows that wrote the end token
    cache: Any  # the decoder's, as `tokens_to_logits` returned it


def generate(
    tokens_to_logits: TokensToLogits[Cache],
    cache: Cache,
    *,
    start_tokens: jax.Array,
    rngs: jax.Array,
    max_new_tokens: int,
    end_token: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: jax.Array | None = None,
) -> Generated:
    """Sample up to `max_new_tokens` tokens after `start_tokens`; an `end_token` ends its row.

    The loop stops when every row has ended. Call it inside `jax.jit`, where the parameters that
    `tokens_to_logits` uses are an argument of the compiled function.

    Args:
      tokens_to_logits: (tokens int32 [B], cache) -> (logits float32 [B, V] of the next token, the
        new cache). It is called max_new_tokens times at most: the cache needs room for as many.
      cache: the decoder's state before `start_tokens`.
      start_tokens: int32 [B], the first token each row reads ([CLS] for PLUG), not returned.
      rngs: keys [B]; token t of row r is drawn with `fold_in(rngs[r], t)`, so a row's text depends
        neither on the other rows nor on max_new_tokens.
      max_new_tokens: at least 1.
      end_token: the id that ends a row ([SEP] for PLUG).
      temperature, top_k, top_p, forbidden: see `sample_token`.

    Raises:
      PlugError: an option is out of range.
    """
    if max_new_tokens < 1:
        raise PlugError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    rows = start_tokens.shape[0]
    state = _LoopState(
        step=jnp.int32(0),
        last_tokens=start_tokens.astype(jnp.int32),
        tokens=jnp.full((rows, max_new_tokens), end_token, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        cache=cache,
    )

    def unfinished(state: _LoopState) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.ended)

    def write_one(state: _LoopState) -> _LoopState:
        logits, cache = tokens_to_logits(state.last_tokens, state.cache)
        drawn = sample_token(
            jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, state.step),
            logits,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            forbidden=forbidden,
        )
        written = jnp.where(state.ended, end_token, drawn)  # [B]
        ended = written == end_token
        return _LoopState(
            step=state.step + 1,
            last_tokens=written,
            tokens=state.tokens.at[:, state.step].set(written),
            lengths=state.lengths + ~ended,
            ended=ended,
            cache=cache,
        )

    final = jax.lax.while_loop(unfinished, write_one, state)
    return Generated(tokens=final.tokens, lengths=final.lengths)
