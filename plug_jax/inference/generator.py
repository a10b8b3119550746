"""Generation from prompts: sampling, beam search, streaming and long texts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from plug_jax.decoding.generate import Decoding
from plug_jax.decoding.rolling import RollingScheme, roll
from plug_jax.inference.model import InferenceModel, NoNumbersError
from plug_jax.inference.options import constraints_of, prompt_rngs, sample_rngs, sampling_of
from plug_jax.inference.placement import to_host
from plug_jax.inference.request_options import GenerationOptions

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """A generated text and its log-likelihood."""

    ids: list[int]  # without [CLS] and [SEP]
    text: str
    log_probs: list[float]  # of each id and of [SEP], if any; empty for beam search
    log_prob: float  # of the whole text
    score: float  # beam search: log_prob with length penalty; else log_prob
    stopped: bool  # by [SEP]; False: cut at max_new_tokens

    @property
    def finish_reason(self) -> FinishReason:
        """ "stop" or "length"."""
        return "stop" if self.stopped else "length"

    @property
    def has_numbers(self) -> bool:
        """Whether the model's logits were finite; otherwise there is no text."""
        return math.isfinite(self.log_prob)


_NO_NUMBERS = GeneratedText([], "", [], math.nan, math.nan, stopped=False)


def generate(
    model: InferenceModel,
    prompts: Sequence[str | Sequence[int]],
    options: GenerationOptions,
    *,
    seeds: Sequence[int] | None = None,
) -> list[list[GeneratedText]]:
    """`num_samples` texts per prompt; for beam search the best ones, best first.

    A prompt is a text, or its ids with [CLS] and [SEP]. The encoder reads [CLS] prompt [SEP], the
    decoder starts from [CLS] and [SEP] ends the text; padding, [UNK], [CLS], [MASK] and ids beyond
    the vocabulary are never generated. Sample s of prompt p depends only on (seed, p, s); with
    `seeds`, one per prompt, on (its seed, s). The first call with a length bucket and number of
    rows compiles.

    Raises:
        PlugError: a prompt or `max_new_tokens` is too long for the model, or a forced or forbidden
            text is invalid.
        NoNumbersError: the model's outputs are NaN or infinite.
    """
    found = write(model, prompts, options, seeds=seeds)
    if not all(text.has_numbers for texts in found for text in texts):
        raise NoNumbersError
    return found


def write(
    model: InferenceModel,
    prompts: Sequence[str | Sequence[int]],
    options: GenerationOptions,
    *,
    seeds: Sequence[int] | None = None,
) -> list[list[GeneratedText]]:
    """Like `generate`, but the caller must check `has_numbers`."""
    if not prompts:
        return []
    ids = [model.prompt_ids(p) if isinstance(p, str) else p for p in prompts]
    model.check_length("max_new_tokens", options.max_new_tokens)
    if options.num_beams > 1:
        return _beam_search(model, ids, options)
    decoding = model.start(
        ids, rows_per_prompt=options.num_samples, max_new_tokens=options.max_new_tokens
    )
    rngs = prompt_rngs(options.seed if seeds is None else seeds, len(prompts))
    rows = [options] * (len(prompts) * options.num_samples)
    decoding = model.advance(
        decoding,
        constraints_of(rows, model.config, model.vocabulary),
        sampling_of(rows, sample_rngs(rngs, options.num_samples)),
        steps=options.max_new_tokens,
        candidates=options.candidates(model.config),
        penalties=options.penalties,
    )
    texts = [read_row(model, row) for row in host_rows(decoding, len(rows))]
    return _chunks(texts, options.num_samples)


def stream(
    model: InferenceModel, prompt: str, options: GenerationOptions, *, every: int = 8
) -> Iterator[GeneratedText]:
    """The growing text of one prompt after `every` few tokens; the last equals `generate`'s.

    Each is longer than the previous one; only the last has a valid `stopped`. Samples one text.
    Raises what `generate` does.
    """
    model.check_length("max_new_tokens", options.max_new_tokens)
    ids = [model.prompt_ids(prompt)]
    decoding = model.start(ids, max_new_tokens=options.max_new_tokens)
    constraints = constraints_of([options], model.config, model.vocabulary)
    sampling = sampling_of([options], sample_rngs(prompt_rngs(options.seed, 1), 1))
    for _ in range(0, options.max_new_tokens, every):
        decoding = model.advance(
            decoding,
            constraints,
            sampling,
            steps=every,
            candidates=options.candidates(model.config),
            penalties=options.penalties,
        )
        (row,) = host_rows(decoding, 1)
        text = read_row(model, row)
        if not text.has_numbers:
            raise NoNumbersError
        yield text
        if row.ended:
            return


def generate_long(
    model: InferenceModel,
    prompts: Sequence[str],
    options: GenerationOptions,
    *,
    chunk: int = 128,
    context_length: int = 512,
) -> list[str]:
    """Texts of any length by PLUG's released scheme (`plug_jax.decoding.rolling`), one per prompt.

    It uses the options max_new_tokens, which may exceed the model's positions, temperature, top_k,
    top_p and seed. As in the released code, long prompts keep their end; in them ‘, “ and ——
    become ', " and -- (closing quotes stay); and a run of [UNK] in the text is written as “.

    Raises:
        NoNumbersError: the model's outputs are NaN or infinite.
    """
    v = model.vocabulary
    context_length = min(context_length, model.config.max_positions)
    chunk = min(chunk, model.config.max_positions - 1)  # and [CLS]
    scheme = RollingScheme(
        cls_id=v.cls_id,
        sep_id=v.sep_id,
        unk_id=v.unk_id,
        vocab_size=v.vocab_size,
        chunk=chunk,
        context_length=context_length,
    )
    contexts = [
        [v.cls_id, *v.encode(_ascii_marks(prompt))[-(context_length - 2) :], v.sep_id]
        for prompt in prompts
    ]
    rows = [options] * len(prompts)
    sampling = sampling_of(rows, sample_rngs(prompt_rngs(options.seed, len(prompts)), 1))
    lengths = [options.max_new_tokens] * len(prompts)

    def next_chunk(
        contexts: list[list[int]], written: list[int], draws: int, active: list[bool]
    ) -> tuple[Any, Any, Any]:
        found = to_host(
            model.write_chunk(
                contexts,
                sampling,
                scheme,
                written=written,
                asked=lengths,
                draws=draws,
                active=active,
                candidates=options.candidates(model.config),
            )
        )
        if found.broken.any():
            raise NoNumbersError
        return found.tokens, found.lengths, found.ended

    texts = roll(next_chunk, contexts, scheme, lengths=lengths)
    return ["".join(_pieces(model, ids)) for ids in texts]


def _pieces(model: InferenceModel, ids: Sequence[int]) -> Iterator[str]:
    """Text of each run of ids without [UNK], and “ for each run of [UNK]."""
    for unknown, run in itertools.groupby(ids, lambda i: i == model.vocabulary.unk_id):
        yield "“" if unknown else model.vocabulary.decode(list(run))


def _ascii_marks(prompt: str) -> str:
    return prompt.replace("‘", "'").replace("“", '"').replace("——", "--")


@dataclasses.dataclass(frozen=True)
class HostRow:
    """One row of a `Decoding`, read back."""

    tokens: np.ndarray  # int32 [N]
    log_probs: np.ndarray  # float32 [N]
    length: int
    ended: bool
    stopped: bool  # by [SEP]


def host_rows(decoding: Decoding, count: int) -> list[HostRow]:
    """The first `count` rows; the others are a mesh's padding."""
    d = decoding
    tokens, log_probs, *flags = to_host((d.tokens, d.log_probs, d.lengths, d.ended, d.stopped))
    rows = zip(tokens, log_probs, *(flag.tolist() for flag in flags), strict=True)
    return [HostRow(*row) for row in itertools.islice(rows, count)]


def read_row(model: InferenceModel, row: HostRow) -> GeneratedText:
    """The text of a row so far."""
    log_probs = row.log_probs[: row.length + row.stopped].tolist()
    total = float(sum(log_probs))
    if not math.isfinite(total):
        return _NO_NUMBERS
    ids = row.tokens[: row.length].tolist()
    return GeneratedText(ids, model.vocabulary.decode(ids), log_probs, total, total, row.stopped)


def _beam_search(
    model: InferenceModel, ids: Sequence[Sequence[int]], options: GenerationOptions
) -> list[list[GeneratedText]]:
    rows = [options] * (len(ids) * options.num_beams)
    found = to_host(
        model.beam_search(
            ids,
            constraints_of(rows, model.config, model.vocabulary),
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            length_penalty=options.length_penalty,
            length_offset=options.length_offset,
            penalties=options.penalties,
        )
    )

    def text(at: tuple[int, int]) -> GeneratedText:
        if not math.isfinite(found.log_probs[at]):
            return _NO_NUMBERS
        written = found.tokens[at][: found.lengths[at]].tolist()
        return GeneratedText(
            ids=written,
            text=model.vocabulary.decode(written),
            log_probs=[],
            log_prob=float(found.log_probs[at]),
            score=float(found.scores[at]),
            stopped=bool(found.ended[at]),
        )

    return [
        # Under strict constraints a prompt may have fewer texts than requested.
        [text((p, b)) for b in range(options.num_samples) if found.scores[p, b] != -np.inf]
        for p in range(len(ids))
    ]


def _chunks(items: list[GeneratedText], size: int) -> list[list[GeneratedText]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
