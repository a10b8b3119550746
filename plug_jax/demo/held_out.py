"""The demo's held-out texts: n-gram baselines, and the model's continuations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.packing import unpack_examples
from plug_jax.demo import baselines
from plug_jax.demo.baselines import Baselines
from plug_jax.demo.ngram_models import KneserNey
from plug_jax.demo.text_quality import TextQuality, text_quality
from plug_jax.inference.generator import generate
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.training.program import TrainConfig

PROMPTS = (
    "中共中央总书记、国家主席",
    "新华社北京1月5日电，记者今天从有关部门获悉，",
    "随着改革开放的深入，我国经济",
)
NEW_TOKENS = 60
_NGRAM_ORDERS = (1, 2, 3, 4)
_TEXTS_TO_JUDGE = 64  # continuations of held-out texts, of NEW_TOKENS each


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Texts and statistics that do not depend on the model."""

    baselines: Baselines
    ngrams: Mapping[int, KneserNey]  # by order
    ngram_perplexities: dict[int, float]  # of held-out decoder tokens
    lengths: dict[str, list[int]]  # drawn in one pass over the training text
    prompts: list[np.ndarray]  # held-out encoder texts, with [CLS] and [SEP]
    continuations: list[np.ndarray]  # their true continuations, NEW_TOKENS each

    def quality(self, written: Sequence[np.ndarray]) -> TextQuality:
        """Quality of texts that continue the prompts."""
        befores = (prompt[1:-1] for prompt in self.prompts)
        texts = list(zip(befores, written, strict=True))
        return text_quality(self.ngrams[max(self.ngrams)], texts)


def read_held_out(config: TrainConfig) -> HeldOut:
    """Count n-grams in a stage 2 run's training texts, and score the held-out texts."""
    assert config.eval_data is not None
    once = dataclasses.replace(config.train_data, num_epochs=1, shuffle=False)
    vocab_size = config.model.vocab_size
    batches, held_out_batches = (
        list(pipeline.make_iterator(data)) for data in (once, config.eval_data)
    )
    train, held_out = (
        [one for batch in some for one in unpack_examples(batch)]
        for some in (batches, held_out_batches)
    )
    ngrams = {
        order: baselines.ngram_model(train, order=order, vocab_size=vocab_size)
        for order in _NGRAM_ORDERS
    }
    long = [one for one in held_out if len(one["decoder_target_tokens"]) > NEW_TOKENS]
    judged = long[:_TEXTS_TO_JUDGE]
    return HeldOut(
        baselines=baselines.context_free_baselines(
            baselines.decoder_token_counts(batches, vocab_size), held_out_batches
        ),
        ngrams=ngrams,
        ngram_perplexities={
            order: baselines.ngram_perplexity(model, held_out) for order, model in ngrams.items()
        },
        lengths={
            "encoder lengths": [len(one["encoder_input_tokens"]) for one in train],
            "decoder lengths": [len(one["decoder_target_tokens"]) for one in train],
        },
        prompts=[one["encoder_original_tokens"] for one in judged],
        continuations=[one["decoder_target_tokens"][:NEW_TOKENS] for one in judged],
    )


def write_texts(checkpoint: Path, data: HeldOut) -> tuple[dict[str, str], TextQuality]:
    """Continuations of PROMPTS, and the quality of those of held-out texts."""
    model = InferenceModel.load(checkpoint)
    samples = generate(model, PROMPTS, GenerationOptions(max_new_tokens=NEW_TOKENS))
    texts = {prompt: text.text for prompt, (text,) in zip(PROMPTS, samples, strict=True)}
    as_long = GenerationOptions(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    written = generate(model, [prompt.tolist() for prompt in data.prompts], as_long)
    return texts, data.quality([np.array(text.ids) for (text,) in written])
