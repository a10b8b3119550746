"""Request options: the single declaration of each option, its default and help text.

Commands, the server and the Python interface all derive their options from it. Nothing heavy is
imported before an object is made, so that help texts are instant.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from plug_jax.config import PlugConfig
from plug_jax.errors import PlugError, shown
from plug_jax.field_types import check_fields

Pooling = Literal["mean", "cls"]

MAX_TEXTS = 1 << 16  # at a time: rows of one program
MAX_INT = 2**31 - 1
# Within these bounds, float32 can represent every score: a sum of log-probabilities multiplied by
# the penalty, divided by a length of up to 2**16 to this power.
_LARGEST_PENALTY = 1000.0
_LARGEST_POWER = 5.0


def option(default: Any, text: str) -> Any:
    """A field with its default and help text."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options for generation. temperature 0.9 and top_k 20 are the released PLUG's.

    Numbers beyond float32 and int32 are refused, or replaced by the nearest representable one if
    that gives the same texts.

    Raises:
        PlugError: an option is out of range or of another type; the message names it.
    """

    max_new_tokens: int = option(128, "stop after this many tokens")
    min_new_tokens: int = option(0, "do not stop before this many tokens")
    num_samples: int = option(1, "texts to write per prompt; with num_beams > 1 the best beams")
    seed: int = option(0, "seed of the samples")
    temperature: float = option(0.9, "0 is greedy")
    top_k: int = option(20, "sample from the k most likely tokens, 0 = all")
    top_p: float = option(1.0, "sample from the most likely tokens with this total probability")
    repetition_penalty: float = option(1.0, "above 1: less repetition; 1: no penalty")
    no_repeat_ngram: int = option(0, "no n-gram of n tokens twice, 0 = off")
    forced_text: str = option("", "prefix that the text must start with")
    forbidden_text: str = option("", "tokens that must not be generated")
    num_beams: int = option(1, "above 1: beam search, without sampling")
    length_penalty: float = option(
        1.0, "beam search: exponent of the length; above 1 prefers long texts, 0 short ones"
    )
    length_offset: float = option(
        0.0, "beam search: the length penalty is ((offset + length) / (offset + 1)) ** power"
    )

    def __post_init__(self) -> None:
        from plug_jax.decoding.constraints import MAX_NGRAM

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
            f"{name} is {shown(getattr(self, name))}; it must be {what}"
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
        """Whether generated tokens affect later ones (penalties)."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram > 0

    def candidates(self, config: PlugConfig) -> int:
        """How many of the likeliest tokens sampling must consider."""
        from plug_jax.decoding.sampling import candidates_for

        return candidates_for(
            temperature=self.temperature, top_k=self.top_k, vocab_size=config.padded_vocab_size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """Options for embedding.

    pooling: "mean", over the states of the text's tokens (without [CLS], [SEP] and padding), or
    "cls", the state at [CLS]. The mean is the default because without fine-tuning the [CLS] state
    carries little: means compare better (Reimers and Gurevych 2019, arXiv 1908.10084, table 6).
    Neither uses BERT's pooler, which is trained for sentence pairs, if at all.
    normalize: divide by the L2 norm, so that dot products are cosines.
    max_length: tokens, including [CLS] and [SEP]; the rest is cut, and counted. None: a text that
    is too long for the model is an error.
    """

    pooling: Literal["mean", "cls"] = option(
        "mean", "mean over the text's tokens, or cls, the state at [CLS]"
    )
    normalize: bool = option(False, "scale vectors to unit L2 norm")
    max_length: int | None = option(None, "truncate to this many tokens, [CLS] and [SEP] included")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Options for filling [MASK]."""

    top_k: int = option(5, "candidates per [MASK], 0 = every piece")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_k < 0:
            raise PlugError(f"top_k is {shown(self.top_k)}; it must be 0 (every piece) or positive")
