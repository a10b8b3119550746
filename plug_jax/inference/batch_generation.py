"""Batch generation: the work of `plug-jax infer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plug_jax.field_types import check_fields
from plug_jax.inference.generator import GeneratedText, write
from plug_jax.inference.jobs import Answer, DecoderWork
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.inference.rows import Row, prompt_ids


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The prompt of a row."""

    ids: list[int]  # with [CLS] and [SEP]
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(DecoderWork):
    """Adds `generated`, the texts for a row's prompt.

    A row's random numbers depend only on its input index and the options' seed.
    """

    ANSWERS: ClassVar[tuple[str, ...]] = ("generated",)

    options: GenerationOptions
    prompt_field: str | None = None  # None: the first present of PROMPT_FIELDS

    def __post_init__(self) -> None:
        check_fields(self)

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        options = dataclasses.asdict(self.options)
        return {"work": "infer", "prompt_field": self.prompt_field, **options}

    def prepare(self, model: InferenceModel, row: Row, index: int) -> Prompt:
        """The prompt's ids; PlugError if it is missing or too long."""
        return Prompt(prompt_ids(model, row, self.prompt_field), row_seed(self.options.seed, index))

    def size(self, item: Prompt) -> tuple[int, ...]:
        """Number of texts, and tokens of the prompt."""
        return max(self.options.num_samples, self.options.num_beams), len(item.ids)

    def answer(
        self, model: InferenceModel, items: Sequence[Prompt]
    ) -> list[Answer | NoNumbersError]:
        """The texts of each, best first with beam search."""
        found = write(
            model, [item.ids for item in items], self.options, seeds=[item.seed for item in items]
        )
        return [
            Answer(
                {"generated": [self._fields(text) for text in texts]},
                sum(len(text.ids) for text in texts),
            )
            if all(text.has_numbers for text in texts)
            else NoNumbersError()
            for texts in found
        ]

    def _fields(self, text: GeneratedText) -> dict[str, Any]:
        score = {"score": text.score} if self.options.num_beams > 1 else {}
        return {
            "text": text.text,
            "tokens": len(text.ids),
            "log_prob": text.log_prob,
            **score,
            "finish_reason": text.finish_reason,
        }


def row_seed(seed: int, index: int) -> int:
    """A 32-bit seed for row `index`, different from its neighbours' and other seeds'."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
