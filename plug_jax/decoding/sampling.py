"""Draw the next token of every row from its logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plug_jax.errors import PlugError


def row_rngs(rng: jax.Array, rows: int) -> jax.Array:
    """Independent keys [rows]; key r depends on `rng` and r, not on how many rows there are."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, jnp.arange(rows))


def check_sampling_options(*, temperature: float, top_k: int, top_p: float) -> None:
    """Raise `PlugError` unless `sample_token` can work with these options."""
    if temperature < 0:
        raise PlugError(f"temperature is {temperature}; it must be 0 (greedy) or positive")
    if top_k < 0:
        raise PlugError(f"top_k is {top_k}; it must be 0 (every token) or positive")
    if not 0 < top_p <= 1:
        raise PlugError(f"top_p is {top_p}; it must be above 0 and at most 1 (every token)")


def sample_token(
    rngs: jax.Array,
    logits: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    forbidden: jax.Array | None = None,
) -> jax.Array:
    """Draw one token per row, int32 [B], from the likely part of `softmax(logits / temperature)`.

    The order is that of the released PLUG code and of Hugging Face: temperature, then the `top_k`
    most likely tokens (0 = all), then of these, renormalised, the smallest set whose probability
    reaches `top_p` (1 = all). Temperature 0 takes the most likely token. Of equal logits, the lower
    id counts as the more likely, so exactly `top_k` tokens remain.

    With logits = log [0.5, 0.3, 0.15, 0.05] and temperature 1, the probabilities of the draw are
      top_k=2:            [0.625, 0.375, 0, 0]
      top_p=0.7:          [0.625, 0.375, 0, 0]    (0.5 alone does not reach 0.7)
      top_k=3, top_p=0.52: [1, 0, 0, 0]           (0.5 / 0.95 reaches 0.52)
      forbidden=[1,0,0,0], top_k=2: [0, 2/3, 1/3, 0]

    Args:
      rngs: keys [B], one for each row; a row's draw does not depend on the other rows.
      logits: float32 [B, V].
      temperature: 0 or more; this and the next two are plain numbers, part of the compiled program.
      top_k: how many tokens to keep; above V means all of them.
      top_p: in (0, 1].
      forbidden: bool [V] (or [B, V]), true for ids never to draw. Some id must be allowed.

    Raises:
      PlugError: an option is out of range.
    """
    check_sampling_options(temperature=temperature, top_k=top_k, top_p=top_p)
    if forbidden is not None:
        logits = jnp.where(forbidden, -jnp.inf, logits)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature

    vocab_size = logits.shape[-1]
    kept = min(top_k, vocab_size) if top_k else vocab_size
    if kept == vocab_size and top_p == 1:
        return _draw(rngs, logits)
    likely_logits, likely_ids = jax.lax.top_k(logits, kept)  # [B, k], most likely first
    if top_p < 1:
        probabilities = jax.nn.softmax(likely_logits, axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        likely_logits = jnp.where(mass_before < top_p, likely_logits, -jnp.inf)
    choice = _draw(rngs, likely_logits)
    return jnp.take_along_axis(likely_ids, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _draw(rngs: jax.Array, logits: jax.Array) -> jax.Array:
    """Indices int32 [B] from unnormalised log-probabilities [B, N], row r with `rngs[r]`."""
    return jax.vmap(jax.random.categorical)(rngs, logits).astype(jnp.int32)
