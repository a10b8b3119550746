"""Stage-2 and generation tasks for t5x's eval.py and infer.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.data.pipeline.pipeline import find_task
from plug_jax.errors import PlugError
from plug_jax.field_types import typed


@typed
def evaluated_task(*, task: str) -> str:
    """Register TASK_evaluated and return its name: the same examples, extended for the scripts.

    Adds `targets`, the decoder's tokens, and a metric for seqio's Evaluator, and the texts
    `inputs_pretokenized` and `targets_pretokenized`, which infer.py writes.

    Raises:
        PlugError: an unknown task, a mixture, or a task without a decoder's text.
    """
    given = find_task(task)
    if not isinstance(given, seqio.Task) or "decoder_target_tokens" not in given.output_features:
        raise PlugError(
            f"{task!r} is not a task with a text for the decoder, such as palm_text, so t5x's "
            "eval.py "
            "and infer.py have nothing to evaluate; `plug-jax evaluate` scores any task and mixture"
        )
    name, features = f"{task}_evaluated", given.output_features
    targets = features["decoder_target_tokens"]
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)

    def with_texts(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = example.get("encoder_original_tokens", example["encoder_input_tokens"])
        written = example["decoder_target_tokens"]
        return {
            **example,
            "targets": written,
            "inputs_pretokenized": targets.vocabulary.decode_tf(inputs),
            "targets_pretokenized": targets.vocabulary.decode_tf(written),
        }

    seqio.TaskRegistry.add(
        name,
        source=given.source,
        preprocessors=[*given.preprocessors, seqio.map_over_dataset(with_texts)],
        output_features={**features, "targets": targets},
        postprocess_fn=_postprocess,
        metric_fns=[log_likelihood],
        shuffle_buffer_size=None,
    )
    return name


def log_likelihood(targets: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """seqio metric: mean score over the decoder's tokens, in nats, and their number.

    `targets` are numbers of tokens, including the [SEP] that ends a text.
    """
    tokens = sum(targets)
    return {"log_likelihood_per_token": float(np.sum(scores)) / max(tokens, 1), "tokens": tokens}


def _postprocess(text: str, example: Mapping[str, np.ndarray], is_target: bool) -> str | int:
    """For a target, its number of counted tokens: seqio passes its text, without [SEP]."""
    return int(example["decoder_loss_weights"].sum()) if is_target else text
