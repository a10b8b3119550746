"""`plug-jax bench int8`: what 8-bit weights cost a trained model, and what they spare.

Axis letters: R texts, T target length, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import seqio

from plug_jax.benchmarks.decode import timed
from plug_jax.benchmarks.writers import Cached
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.inference.generator import generate
from plug_jax.inference.model import InferenceModel
from plug_jax.inference.programs import apply
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.models.plug import PlugModel

_ROWS_A_BATCH = 8


def continuations(
    source: seqio.DataSource,
    vocabulary: PlugVocabulary,
    *,
    prompt_characters: int,
    target_tokens: int,
    texts: int,
) -> list[tuple[str, list[int]]]:
    """Of up to `texts` documents the beginning, and ids of what follows it, as many for each.

    Raises:
        PlugError: no document is long enough.
    """

    def pairs() -> Iterator[tuple[str, list[int]]]:
        for example in source.get_dataset("train", shuffle=False).as_numpy_iterator():
            text = example["text"].decode()
            target = vocabulary.encode(text[prompt_characters:])[:target_tokens]
            if len(target) == target_tokens:
                yield text[:prompt_characters], target

    found = list(itertools.islice(pairs(), texts))
    if not found:
        raise PlugError(
            f"no document has {target_tokens} tokens after {prompt_characters} characters; give "
            "longer texts with --input"
        )
    return found


def measure(
    checkpoint: str | os.PathLike[str],
    pairs: Sequence[tuple[str, list[int]]],
    *,
    batches: Sequence[int],
    new_tokens: int,
    passes: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """A checkpoint in float32 and in int8, on the first device.

    Returns for JSON:
      parameter_bytes: of each.
      perplexity: of each, on the targets of `pairs`.
      log_likelihood_difference: mean and largest absolute difference of a target token's.
      likeliest_token_agreement: share of the targets' places where both find the same token the
        likeliest, given the true text before.
      greedy: share of texts of as many tokens as a target that are the same to the end, and of
        tokens that are the same up to the first difference.
      speed: of greedy texts of `new_tokens` tokens, and that of int8 by float32's.
    """
    models = {
        "float32": InferenceModel.load(checkpoint, dtype="float32"),
        "int8": InferenceModel.load(checkpoint, dtype="float32", int8=True),
    }
    length = len(pairs[0][1])
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, model in models.items():
        report(f"{name}: scores and greedy texts of {len(pairs)} documents")
        found[name] = _read(model, pairs)
    losses = {name: -of["log_likelihoods"] for name, of in found.items()}
    difference = np.abs(losses["int8"] - losses["float32"])
    same = found["int8"]["greedy"] == found["float32"]["greedy"]  # [R, T]
    return {
        "texts": len(pairs),
        "target_tokens": length,
        "parameter_bytes": {name: _bytes(model.params) for name, model in models.items()},
        "perplexity": {name: math.exp(loss.mean()) for name, loss in losses.items()},
        "log_likelihood_difference": {
            "mean": float(difference.mean()),
            "largest": float(difference.max()),
        },
        "likeliest_token_agreement": float(
            (found["int8"]["likeliest"] == found["float32"]["likeliest"]).mean()
        ),
        "greedy": {
            "same_texts": float(same.all(axis=1).mean()),
            "tokens_before_first_difference": float(np.cumprod(same, axis=1).mean()),
        },
        "speed": [
            _speeds(models, batch, new_tokens=new_tokens, passes=passes, report=report)
            for batch in batches
        ],
    }


def _read(model: InferenceModel, pairs: Sequence[tuple[str, list[int]]]) -> dict[str, np.ndarray]:
    """log_likelihoods float32 [R, T], likeliest int32 [R, T] and greedy texts int32 [R, T]."""
    parts = []
    options = GenerationOptions(max_new_tokens=len(pairs[0][1]), temperature=0.0)
    likeliest = _likeliest_function(model)
    for first in range(0, len(pairs), _ROWS_A_BATCH):
        texts, targets = zip(*pairs[first : first + _ROWS_A_BATCH], strict=True)
        prompts = [model.prompt_ids(text) for text in texts]
        scores = model.log_likelihoods(prompts, [[target] for target in targets])
        parts.append(
            {
                "log_likelihoods": np.asarray(scores)[:, 0],
                "likeliest": likeliest(prompts, targets),
                "greedy": np.asarray(
                    [
                        text.ids + [model.vocabulary.sep_id] * (len(targets[0]) - len(text.ids))
                        for (text,) in generate(model, texts, options)
                    ]
                ),
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _likeliest_function(model: InferenceModel) -> Callable[..., np.ndarray]:
    """(prompts, targets) -> the likeliest token, int32 [R, T], after [CLS] and targets[:, :t]."""
    plug = PlugModel(model.config, unstacked_layers=True)

    @jax.jit
    def likeliest(params: Any, tokens: Any, segment_ids: Any, inputs: Any) -> jax.Array:
        encoded = apply(plug, params, "encode", tokens, segment_ids=segment_ids)
        logits = apply(plug, params, "decode", inputs, encoded, encoder_segment_ids=segment_ids)
        return jnp.argmax(logits, axis=-1)

    def call(prompts: Sequence[list[int]], targets: Sequence[list[int]]) -> np.ndarray:
        inputs = np.asarray([[model.vocabulary.cls_id, *target[:-1]] for target in targets])
        return np.asarray(likeliest(model.params, *model.batch(prompts), inputs))

    return call


def _speeds(
    models: dict[str, InferenceModel],
    batch: int,
    *,
    new_tokens: int,
    passes: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    ways = [Cached(model, batch, new_tokens, None, name=name) for name, model in models.items()]
    speeds = timed(ways, passes=passes, report=lambda line: report(f"batch {batch}, {line}"))
    rates = {speed.name: speed.tokens_per_second for speed in speeds}
    return {
        "batch": batch,
        "new_tokens": new_tokens,
        "times_float32": rates["int8"] / rates["float32"],
        **{speed.name: speed.to_json() for speed in speeds},
    }


def _bytes(params: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
