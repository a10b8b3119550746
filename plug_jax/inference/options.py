"""What a request asks of generation, checked once, and as the arrays that a program reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.decoding.constraints import FREE, MAX_NGRAM, Constraints
from plug_jax.decoding.sampling import Sampling, candidates_for, row_rngs
from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields

MAX_TEXTS = 1 << 16  # written at a time: rows of one program
MAX_INT = int(np.iinfo(np.int32).max)
# Within these, float32 holds the score of every text: a sum of log-probabilities that the penalty
# multiplied, divided by a length of up to 2**16 to this power.
_LARGEST_PENALTY = 1000.0
_LARGEST_POWER = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How texts are to be written. temperature 0.9 and top_k 20 are the released PLUG's.

    A number means what it says, however large or small: what float32 and int32 cannot hold is
    refused, or replaced where the nearest that they hold gives the same texts.

    Raises:
        PlugError: an option is out of range or of another type; the message has its name.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0  # no [SEP] before
    num_samples: int = 1  # texts for each prompt; the best of the beams with num_beams > 1
    seed: int = 0
    temperature: float = 0.9  # 0: the likeliest token
    top_k: int = 20  # draw from the k likeliest; 0: all
    top_p: float = 1.0  # draw from the likeliest of this much probability
    repetition_penalty: float = 1.0  # above 1: less of what was written; 1: none
    no_repeat_ngram: int = 0  # no n tokens in a row twice; 0: free
    forced_text: str = ""  # what each text begins with
    forbidden_text: str = ""  # no token of it is written
    num_beams: int = 1  # above 1: beam search, which draws nothing
    length_penalty: float = 1.0  # of beam search: scores are divided by length to this power,
    length_offset: float = 0.0  # or by (offset + length) / (offset + 1) to it

    def __post_init__(self) -> None:
        check_fields(self)
        wanted = {
            "max_new_tokens": (1 <= self.max_new_tokens <= MAX_INT, f"at least 1, below {2**31}"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                "0 or more, and at most max_new_tokens",
            ),
            "num_samples": (1 <= self.num_samples <= MAX_TEXTS, f"between 1 and {MAX_TEXTS}"),
            "seed": (0 <= self.seed < 2**32, "0 or more, below 2**32"),
            "temperature": (self.temperature >= 0, "0 (greedy) or positive"),
            "top_k": (self.top_k >= 0, "0 (every token) or positive"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (every token)"),
            "repetition_penalty": (
                1 / _LARGEST_PENALTY <= self.repetition_penalty <= _LARGEST_PENALTY,
                f"between {1 / _LARGEST_PENALTY} and {_LARGEST_PENALTY}",
            ),
            "no_repeat_ngram": (
                0 <= self.no_repeat_ngram <= MAX_NGRAM,
                f"between 0 (none) and {MAX_NGRAM}",
            ),
            "num_beams": (1 <= self.num_beams <= MAX_TEXTS, f"between 1 and {MAX_TEXTS}"),
            "length_penalty": (
                abs(self.length_penalty) <= _LARGEST_POWER,
                f"between {-_LARGEST_POWER} and {_LARGEST_POWER}",
            ),
            "length_offset": (0 <= self.length_offset <= MAX_TEXTS, f"between 0 and {MAX_TEXTS}"),
        }
        problems = [
            f"{name} is {getattr(self, name)}; it must be {what}"
            for name, (good, what) in wanted.items()
            if not good
        ]
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            problems.append(
                f"num_samples is {self.num_samples}; beam search gives num_beams texts at most, "
                f"{self.num_beams}"
            )
        if problems:
            raise PlugError("; ".join(problems))

    @property
    def penalties(self) -> bool:
        """Whether what was written changes what may follow."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram > 0

    def candidates(self, config: PlugConfig) -> int:
        """How many of the likeliest tokens sampling has to look at."""
        return candidates_for(
            temperature=self.temperature, top_k=self.top_k, vocab_size=config.padded_vocab_size
        )


def not_text(config: PlugConfig, vocabulary: PlugVocabulary) -> np.ndarray:
    """bool [padded vocabulary]: ids never written: no text, and not [SEP], which ends a text.

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
        PlugError: a text to force or forbid that cannot be.
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
    """Keys [prompts]: of one seed for all, by place; or of a seed for each."""
    if isinstance(seeds, int):
        return row_rngs(jax.random.key(seeds), prompts)
    return jax.vmap(lambda seed: row_rngs(jax.random.key(seed), 1)[0])(
        jnp.asarray(seeds, jnp.uint32)
    )


def sample_rngs(rngs: jax.Array, num_samples: int) -> jax.Array:
    """Keys [P * num_samples] of keys [P]; the key of sample s depends on s, not on num_samples."""
    return jax.vmap(lambda key: row_rngs(key, num_samples))(rngs).reshape(-1)


def sample_rng(rngs: jax.Array, sample: int) -> jax.Array:
    """Keys [P]: sample number `sample` of those of `sample_rngs`; one program does for all."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rngs, jnp.uint32(sample))


def _float32(value: float) -> float:
    """0, or the nearest that is a normal number of float32, and so is its reciprocal.

    A program takes smaller numbers for 0, and may multiply by the reciprocal to divide.
    """
    smallest = float(np.finfo(np.float32).tiny)
    return min(max(value, smallest), 1 / smallest) if value else 0.0


def _forced_ids(
    options: GenerationOptions, not_text: np.ndarray, vocabulary: PlugVocabulary
) -> list[int]:
    ids = vocabulary.encode(options.forced_text) if options.forced_text else []
    if any(not_text[i] for i in ids):
        raise PlugError(
            f"forced_text {options.forced_text!r} has characters that the vocabulary does not know "
            "(they would be [UNK]); leave them out"
        )
    return ids


def _bucket(length: int) -> int:
    """0, or the next power of two of at least 8: so few sizes mean few compiled programs."""
    return 0 if length == 0 else max(8, 1 << (length - 1).bit_length())
