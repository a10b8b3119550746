"""Beam search for any cached decoder, with Hugging Face's scores.

Axis letters: P prompts, K beams, N room for new tokens, V vocabulary; B = P * K rows, those of a
prompt next to each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from plug_jax.decoding.constraints import Constraints, constrain
from plug_jax.decoding.generate import Cache, TokensToLogits, has_numbers


@flax.struct.dataclass
class Hypotheses:
    """Texts of each prompt, best first; empty places have score -inf.

    Scores and log_probs of a prompt are NaN if some logits of its texts were not finite.
    """

    tokens: jax.Array  # int32 [P, K, N]; the end token from lengths on
    lengths: jax.Array  # int32 [P, K]: tokens before the end token
    scores: jax.Array  # float32 [P, K]: of the constrained sum / (tokens with the end) ** penalty
    log_probs: jax.Array  # float32 [P, K]: sum over the tokens, of the model without constraints
    ended: jax.Array  # bool [P, K]: by the end token; false: cut at the maximum length


@flax.struct.dataclass
class _State:
    step: jax.Array  # int32 []: tokens in every live text
    live: jax.Array  # int32 [P, K, N]
    live_sums: jax.Array  # float32 [P, K]: log-probabilities under the constraints; -inf: no text
    live_log_probs: jax.Array  # float32 [P, K]: as in Hypotheses
    broken: jax.Array  # bool [P]: some logits were not finite
    finished: Hypotheses
    last_tokens: jax.Array  # int32 [B]
    cache: Any


def beam_search(
    tokens_to_logits: TokensToLogits[Cache],
    cache: Cache,
    reorder: Callable[[Cache, jax.Array], Cache],
    constraints: Constraints,
    *,
    start_tokens: jax.Array,
    num_beams: int,
    max_new_tokens: int,
    end_token: int,
    length_penalty: float | jax.Array,
    length_offset: float | jax.Array = 0.0,
    penalties: bool,
) -> Hypotheses:
    """The `num_beams` best texts of each prompt, found by keeping as many at every step.

    A text ends only where its end is among the `num_beams` likeliest continuations of the prompt's
    beams. A prompt's search ends when no live beam can beat its worst finished text: as in Hugging
    Face with `early_stopping="never"`. Call it inside `jax.jit`.

    Args:
      tokens_to_logits: see `generate.TokensToLogits`.
      cache: of all B rows before `start_tokens`, with room for `max_new_tokens`.
      reorder: (cache, parents int32 [B]) -> the cache whose row b continues row parents[b].
      constraints: of each of the B rows, equal for the rows of a prompt. Penalties change the
        log-probabilities in the sum without renormalisation, as in Hugging Face.
      start_tokens: int32 [B].
      num_beams: K, static.
      max_new_tokens: N, static.
      end_token: the id that ends a text.
      length_penalty: exponent p of the length; 0 compares sums, 1 means, above 1 prefers long
        texts.
      length_offset: k of the penalty ((k + length) / (k + 1)) ** p; GNMT's and PLUG's has 5.
      penalties: static, see `constrain`.
    """
    beams, places = num_beams, jnp.arange(max_new_tokens)
    prompts = start_tokens.shape[0] // beams
    max_length = constraints.max_length.reshape(prompts, beams)

    def score(sums: jax.Array, count: jax.Array) -> jax.Array:
        length = jnp.maximum(count, 1).astype(jnp.float32)
        return sums / ((length_offset + length) / (length_offset + 1)) ** length_penalty

    def unfinished(state: _State) -> jax.Array:
        # Sums only decrease, so the most favourable length bounds future scores.
        count = jnp.where(length_penalty > 0, max_length[:, 0], state.step + 1)
        hope = score(jnp.max(state.live_sums, axis=1), count)
        return (state.step < max_new_tokens) & jnp.any(hope > state.finished.scores[:, -1])

    def write_one(state: _State) -> _State:
        active = (state.live_sums > -jnp.inf).reshape(-1)
        logits, cache = tokens_to_logits(state.last_tokens, state.cache, active)
        broken = (active & ~has_numbers(logits)).reshape(prompts, beams).any(axis=1)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        constrained = constrain(
            log_probs,
            constraints,
            tokens=state.live.reshape(-1, max_new_tokens),
            lengths=jnp.full(prompts * beams, state.step),
            end_token=end_token,
            penalties=penalties,
        ).reshape(prompts, beams, -1)
        # Of 2K candidates at most K end, one per beam, so at least K continue.
        wanted = min(2 * beams, constrained.shape[-1])
        sums, ids = jax.lax.top_k(constrained, wanted)  # of each beam [P, K, wanted]
        sums = (sums + state.live_sums[:, :, None]).reshape(prompts, -1)
        sums, chosen = jax.lax.top_k(sums, min(2 * beams, sums.shape[1]))  # [P, C]
        parents = chosen // wanted
        drawn = jnp.take_along_axis(ids.reshape(prompts, -1), chosen, axis=1)
        rows = jnp.arange(prompts)[:, None] * beams + parents
        own = log_probs[rows, drawn] + jnp.take_along_axis(state.live_log_probs, parents, axis=1)
        texts = jnp.take_along_axis(state.live, parents[:, :, None], axis=1)
        texts = jnp.where(places == state.step, drawn[:, :, None], texts)  # [P, C, N]

        count = state.step + 1  # tokens of the candidates, including an end token
        ends = drawn == end_token
        over = ends | (count >= max_length[:, :1])
        # The second K candidates only replace those of the first that end.
        finished = over & (jnp.arange(over.shape[1]) < beams)
        new = Hypotheses(
            tokens=texts,
            lengths=jnp.where(ends, state.step, count),
            scores=jnp.where(finished, score(sums, count), -jnp.inf),
            log_probs=own,
            ended=ends,
        )
        live_sums, kept = jax.lax.top_k(jnp.where(over, -jnp.inf, sums), beams)
        return _State(
            step=count,
            live=jnp.take_along_axis(texts, kept[:, :, None], axis=1),
            live_sums=live_sums,
            live_log_probs=jnp.take_along_axis(own, kept, axis=1),
            broken=state.broken | broken,
            finished=_best(state.finished, new, beams),
            last_tokens=jnp.take_along_axis(drawn, kept, axis=1).reshape(-1),
            cache=reorder(cache, jnp.take_along_axis(rows, kept, axis=1).reshape(-1)),
        )

    empty = jnp.full((prompts, beams), -jnp.inf)
    blank = jnp.full((prompts, beams, max_new_tokens), end_token, jnp.int32)
    none = jnp.zeros((prompts, beams), jnp.int32)
    state = _State(
        step=jnp.int32(0),
        live=blank,
        live_sums=empty.at[:, 0].set(0.0),  # the beams of a prompt start from one text
        live_log_probs=jnp.zeros((prompts, beams)),
        broken=jnp.zeros(prompts, bool),
        finished=Hypotheses(blank, none, empty, empty, none.astype(bool)),
        last_tokens=start_tokens.astype(jnp.int32),
        cache=cache,
    )
    state = jax.lax.while_loop(unfinished, write_one, state)

    def unless_broken(values: jax.Array) -> jax.Array:
        return jnp.where(state.broken[:, None], jnp.nan, values)

    return dataclasses.replace(
        state.finished,
        scores=unless_broken(state.finished.scores),
        log_probs=unless_broken(state.finished.log_probs),
    )


def _best(old: Hypotheses, new: Hypotheses, count: int) -> Hypotheses:
    """The `count` hypotheses with the best scores of each prompt, best first."""
    both: Hypotheses = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
    _, order = jax.lax.top_k(both.scores, count)
    prompts = jnp.arange(len(order))[:, None]
    best: Hypotheses = jax.tree.map(lambda leaf: leaf[prompts, order], both)
    return best
