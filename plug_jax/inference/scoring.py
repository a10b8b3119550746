"""Log-likelihoods of given texts after given prompts: the work of `plug-jax score`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields
from plug_jax.inference.jobs import ERROR, Answer, DecoderWork
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.rows import TARGET_FIELDS, Row, checked_text, prompt_ids

_LARGEST_EXPONENT = 700.0  # for exp in float64


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A prompt and its targets."""

    prompt: list[int]  # with [CLS] and [SEP]
    targets: tuple[tuple[int, ...], ...]  # without [CLS]; with [SEP] if it counts
    single: bool = True  # the row had a text, not a list


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-likelihood (natural logarithm) of a number of tokens."""

    log_likelihood: float
    tokens: int

    @property
    def has_numbers(self) -> bool:
        """Whether the model's logits were finite."""
        return math.isfinite(self.log_likelihood)

    @property
    def mean_log_likelihood(self) -> float:
        """Mean per token."""
        return self.log_likelihood / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(- mean log-likelihood)."""
        return math.exp(min(-self.mean_log_likelihood, _LARGEST_EXPONENT))

    def fields(self) -> dict[str, Any]:
        """The output fields."""
        return {name: getattr(self, name) for name in Scoring.ANSWERS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(DecoderWork):
    """The log-likelihood of a row's target after its prompt, or of each of a list of targets.

    `sep`: count the [SEP] that ends a text as its last token, as in training. Then the sum is the
    log-probability that the model generates exactly this text; without it, that it begins with it.
    """

    ANSWERS: ClassVar[tuple[str, ...]] = (
        "log_likelihood",
        "tokens",
        "mean_log_likelihood",
        "perplexity",
    )

    prompt_field: str | None = None  # None: the first present of PROMPT_FIELDS
    target_field: str | None = None  # None: the first present of TARGET_FIELDS
    sep: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def settings(self) -> Mapping[str, Any]:
        """Every option."""
        return {"work": "score", **dataclasses.asdict(self)}

    def prepare(self, model: InferenceModel, row: Row, index: int) -> Pairs:
        """Ids of prompt and targets; PlugError if one is missing or too long."""
        prompt = prompt_ids(model, row, self.prompt_field)
        if self.target_field is None and "target" in row.ids:
            ids = row.ids["target"]
            ends = ids[-1:] == [model.vocabulary.sep_id]
            return Pairs(prompt, (_checked(model, ids[:-1] if ends and not self.sep else ids),))
        name, value = row.first(
            TARGET_FIELDS if self.target_field is None else (self.target_field,)
        )
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise PlugError(f"field {name!r} must hold a text or a list of texts")
        targets = [target_ids(model, checked_text(text, name), sep=self.sep) for text in texts]
        return Pairs(prompt, tuple(targets), single=isinstance(value, str))

    def size(self, item: Pairs) -> tuple[int, ...]:
        """Number of targets, and padded lengths of prompt and longest target."""
        return pairs_size(item)

    def answer(
        self, model: InferenceModel, items: Sequence[Pairs]
    ) -> list[Answer | NoNumbersError]:
        """The scores of each; lists if the row has a list."""
        answers: list[Answer | NoNumbersError] = []
        for item, scores in zip(items, score_pairs(model, items), strict=True):
            if not all(score.has_numbers for score in scores):
                answers.append(NoNumbersError())
                continue
            fields = [score.fields() for score in scores]
            lists = {name: [f[name] for f in fields] for name in self.ANSWERS}
            answers.append(
                Answer(fields[0] if item.single else lists, sum(score.tokens for score in scores))
            )
        return answers


class Total:
    """The total score of all targets of all rows, and their number."""

    def __init__(self) -> None:
        self.rows = self.errors = self.targets = 0
        self._log_likelihoods: list[float] = []
        self._tokens = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `Scoring`."""
        self.rows += 1
        if ERROR in row:
            self.errors += 1
            return
        sums, tokens = row["log_likelihood"], row["tokens"]
        sums, tokens = (sums, tokens) if isinstance(sums, list) else ([sums], [tokens])
        self.targets += len(sums)
        self._log_likelihoods += sums
        self._tokens += sum(tokens)

    def fields(self) -> dict[str, Any]:
        """The output fields; the mean is over tokens, so long rows weigh more."""
        score = Score(math.fsum(self._log_likelihoods), self._tokens)
        counts = {"rows": self.rows, "errors": self.errors, "targets": self.targets}
        return counts | (score.fields() if self._tokens else {})


def score_pairs(model: InferenceModel, items: Sequence[Pairs]) -> list[list[Score]]:
    """The score of each target of each item; all items have equally many targets."""
    found = model.log_likelihoods([item.prompt for item in items], [item.targets for item in items])
    return [[Score(math.fsum(ids), len(ids)) for ids in of_item] for of_item in found]


def pairs_size(item: Pairs) -> tuple[int, ...]:
    """Number of targets, and lengths of prompt and longest target."""
    return len(item.targets), len(item.prompt), max(map(len, item.targets))


def target_ids(model: InferenceModel, text: str, *, sep: bool) -> tuple[int, ...]:
    """Ids of a target, with [SEP] if it counts; PlugError if there are none or too many."""
    v = model.vocabulary
    return _checked(model, [*v.encode(text), *([v.sep_id] if sep else [])])


def _checked(model: InferenceModel, ids: Sequence[int]) -> tuple[int, ...]:
    longest = model.config.max_positions
    if not 1 <= len(ids) <= longest:
        raise PlugError(
            f"a target has {len(ids)} tokens ([SEP] included where that counts); this model scores "
            f"1 to {longest}"
        )
    return tuple(ids)
