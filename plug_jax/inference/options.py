"""Generation options as arrays for compiled programs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.decoding.constraints import FREE, Constraints
from plug_jax.decoding.sampling import Sampling, row_rngs
from plug_jax.errors import PlugError, shown
from plug_jax.inference.request_options import MAX_INT, GenerationOptions


def not_text(config: PlugConfig, vocabulary: PlugVocabulary) -> np.ndarray:
    """bool [padded vocabulary]: ids never generated, which are neither text nor [SEP].

    Padding, [UNK], [CLS], [MASK], other control pieces, and ids beyond the vocabulary.
    """
    forbidden = np.arange(config.padded_vocab_size) >= vocabulary.vocab_size
    forbidden[list(vocabulary.special_ids)] = True
    forbidden[vocabulary.sep_id] = False
    return forbidden


def constraints_of(
    options: Sequence[GenerationOptions],
    config: PlugConfig,
    vocabulary: PlugVocabulary,
    *,
    forced_places: int | None = None,
) -> Constraints:
    """A row for each of `options`; `forced` has `forced_places`, or as many as are needed.

    Raises:
        PlugError: an invalid forced or forbidden text.
    """
    base = not_text(config, vocabulary)
    forbidden = np.repeat(base[None], len(options), axis=0)
    forced = [_forced_ids(o, base, vocabulary) for o in options]
    places = _bucket(max(map(len, forced))) if forced_places is None else forced_places
    for row, o in enumerate(options):
        if len(forced[row]) > min(places, o.max_new_tokens):
            raise PlugError(
                f"forced_text has {len(forced[row])} tokens; there is room for "
                f"{min(places, o.max_new_tokens)} (max_new_tokens {o.max_new_tokens})"
            )
        forbidden[row, vocabulary.encode(o.forbidden_text) if o.forbidden_text else []] = True
        forbidden[row, vocabulary.sep_id] = False

    def column(name: str, dtype: type) -> jax.Array:
        return jnp.asarray([getattr(o, name) for o in options], dtype)

    return Constraints(
        min_length=column("min_new_tokens", jnp.int32),
        max_length=column("max_new_tokens", jnp.int32),
        repetition_penalty=column("repetition_penalty", jnp.float32),
        no_repeat_ngram=column("no_repeat_ngram", jnp.int32),
        forbidden=jnp.asarray(forbidden),
        forced=jnp.asarray([ids + [FREE] * (places - len(ids)) for ids in forced], jnp.int32),
    )


def sampling_of(options: Sequence[GenerationOptions], rngs: jax.Array) -> Sampling:
    """A row for each of `options`, with keys [rows]."""
    return Sampling(
        rngs=rngs,
        temperature=jnp.asarray([_float32(o.temperature) for o in options], jnp.float32),
        top_k=jnp.asarray([min(o.top_k, MAX_INT) for o in options], jnp.int32),
        top_p=jnp.asarray([_float32(o.top_p) for o in options], jnp.float32),
    )


def prompt_rngs(seeds: Sequence[int] | int, prompts: int) -> jax.Array:
    """Keys [prompts]: from one seed by index, or from a seed for each."""
    if isinstance(seeds, int):
        return row_rngs(jax.random.key(seeds), prompts)
    return jax.vmap(lambda seed: row_rngs(jax.random.key(seed), 1)[0])(
        jnp.asarray(seeds, jnp.uint32)
    )


def sample_rngs(rngs: jax.Array, num_samples: int) -> jax.Array:
    """Keys [P * num_samples] of keys [P]; the key of sample s depends on s, not on num_samples."""
    return jax.vmap(lambda key: row_rngs(key, num_samples))(rngs).reshape(-1)


def sample_rng(rngs: jax.Array, sample: int) -> jax.Array:
    """Keys [P]: sample number `sample` of `sample_rngs`, with one program for all."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, jnp.uint32(sample))


def _float32(value: float) -> float:
    """0, or the nearest normal float32 whose reciprocal is also normal.

    A program flushes smaller numbers to 0, and may divide by multiplying with the reciprocal.
    """
    smallest = float(np.finfo(np.float32).tiny)
    return min(max(value, smallest), 1 / smallest) if value else 0.0


def _forced_ids(
    options: GenerationOptions, not_text: np.ndarray, vocabulary: PlugVocabulary
) -> list[int]:
    ids = vocabulary.encode(options.forced_text) if options.forced_text else []
    if any(not_text[i] for i in ids):
        raise PlugError(
            f"forced_text {shown(options.forced_text)} has characters that the vocabulary does not "
            "know (they would be [UNK]); leave them out"
        )
    return ids


def _bucket(length: int) -> int:
    """0, or the next power of two of at least 8: few sizes mean few compiled programs."""
    return 0 if length == 0 else max(8, 1 << (length - 1).bit_length())
