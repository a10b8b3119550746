"""PLUG's released scheme for long texts: chunk by chunk, the output moves into the context.

The encoder reads [CLS] prompt [SEP]. After each chunk the text replaces the context's [SEP], with a
new [SEP] after it; if the context is too long, only its end is kept; the decoder restarts from
[CLS]. A [SEP] drawn at up to 4/5 of the requested length is discarded but counts as a token; later
it ends the text. Ids beyond the vocabulary become [UNK].

Axis letters: B rows, N tokens of a chunk, V padded vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from plug_jax.decoding.generate import Cache, TokensToLogits, has_numbers
from plug_jax.decoding.sampling import Sampling, sample_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class RollingScheme:
    """The scheme's numbers, with the released defaults, and ids."""

    cls_id: int
    sep_id: int
    unk_id: int
    vocab_size: int
    chunk: int = 128  # tokens between two encodings
    context_length: int = 512  # tokens that the encoder reads, including [CLS] and [SEP]


@flax.struct.dataclass
class Chunk:
    """The tokens that a chunk adds to each row: `tokens[b, :lengths[b]]` for row b."""

    tokens: jax.Array  # int32 [B, N]
    lengths: jax.Array  # int32 [B]
    ended: jax.Array  # bool [B]: the row drew a [SEP] that counts
    broken: jax.Array  # bool [B]: some logits that the row sampled from were not finite


def write_chunk(
    tokens_to_logits: TokensToLogits[Cache],
    cache: Cache,
    sampling: Sampling,
    scheme: RollingScheme,
    *,
    written: jax.Array,
    asked: jax.Array,
    draws: jax.Array,
    active: jax.Array,
    candidates: int,
) -> Chunk:
    """Sample `scheme.chunk` tokens for every active row from a fresh decoder; call it under jit.

    Args:
      tokens_to_logits: see `generate.TokensToLogits`.
      cache: before [CLS], over the encoded contexts, with room for chunk + 1 tokens.
      sampling: of each row.
      scheme: static.
      written: int32 [B], tokens of the text before this chunk.
      asked: int32 [B], the requested length; a row stops after this many draws in total.
      draws: int32 [B], draws before this chunk; at least `written`.
      active: bool [B], rows that continue.
      candidates: static, see `sample_token`.
    """
    rows, places = active.shape[0], jnp.arange(scheme.chunk)
    start = jnp.full(rows, scheme.cls_id, jnp.int32)
    logits, cache = tokens_to_logits(start, cache, active)
    blank = jnp.full((rows, scheme.chunk), scheme.sep_id, jnp.int32)
    chunk = Chunk(blank, jnp.zeros(rows, jnp.int32), ~active, jnp.zeros(rows, bool))
    state = (jnp.int32(0), chunk, logits, cache)

    def going(done: jax.Array, chunk: Chunk) -> jax.Array:
        return ~chunk.ended & (draws + done < asked)

    def unfinished(state: Any) -> jax.Array:
        done, chunk, _, _ = state
        return (done < scheme.chunk) & jnp.any(going(done, chunk))

    def draw_one(state: Any) -> Any:
        done, chunk, logits, cache = state
        goes = going(done, chunk)
        drawn = sample_token(logits, sampling, draws + done, candidates=candidates)
        drawn = jnp.where(drawn >= scheme.vocab_size, scheme.unk_id, drawn)
        is_sep = drawn == scheme.sep_id
        late = written + chunk.lengths > asked - -(-asked // 5)  # 4/5, which stays in int32
        kept = goes & ~is_sep
        here = kept[:, None] & (places == chunk.lengths[:, None])
        chunk = Chunk(
            tokens=jnp.where(here, drawn[:, None], chunk.tokens),
            lengths=chunk.lengths + kept,
            ended=chunk.ended | (goes & is_sep & late),
            broken=chunk.broken | (goes & ~has_numbers(logits)),
        )
        after, cache = tokens_to_logits(drawn, cache, kept)
        # A row that discarded its draw samples from the same logits again.
        return done + 1, chunk, jnp.where(kept[:, None], after, logits), cache

    return jax.lax.while_loop(unfinished, draw_one, state)[1]


def rewrite(context: Sequence[int], text: Sequence[int], scheme: RollingScheme) -> list[int]:
    """The next chunk's context, without padding.

    [CLS] 5 6 [SEP] and the text 7 8 give [CLS] 5 6 7 8 [SEP], of which a context_length of 5 keeps
    5 6 7 8 [SEP].
    """
    last_sep = len(context) - 1 - list(reversed(context)).index(scheme.sep_id)
    longer = [*context[:last_sep], *text, scheme.sep_id]
    return longer[-scheme.context_length :]


def roll(
    write: Callable[[list[list[int]], list[int], int, list[bool]], tuple[Any, Any, Any]],
    contexts: Sequence[Sequence[int]],
    scheme: RollingScheme,
    *,
    lengths: Sequence[int],
) -> list[list[int]]:
    """The ids of each row's text, at most `lengths`, chunk by chunk.

    Args:
      write: (contexts, tokens written so far, draws so far, active) -> `Chunk`'s fields on the
        host; encodes the contexts and calls `write_chunk`.
      contexts: [CLS] prompt [SEP] of each row.
      scheme: the scheme's settings.
      lengths: requested length of each text.
    """
    now = [list(context) for context in contexts]
    texts: list[list[int]] = [[] for _ in contexts]
    ended = [False] * len(texts)
    draws = 0
    while True:
        active = [not e and draws < n for e, n in zip(ended, lengths, strict=True)]
        if not any(active):
            return texts
        tokens, counts, ends = write(now, [len(text) for text in texts], draws, active)
        for row in [r for r, goes in enumerate(active) if goes]:
            added = [int(t) for t in tokens[row][: counts[row]]]
            texts[row] += added
            ended[row] = bool(ends[row])
            now[row] = rewrite(now[row], added, scheme)
        draws += scheme.chunk
