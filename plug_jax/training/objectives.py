"""What each stage is trained on: from a batch to weighted losses and metrics.

The batch says what is predicted: `sentence_labels` brings the sentence structural objective
(stage 1), `decoder_target_tokens` the continuation (stage 2); masked LM and the word structural
objective share the predicted positions. B rows, E encoder length, P predictions a row, M model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plug_jax import losses
from plug_jax.models.plug import PlugModel
from plug_jax.training.metrics import Mean

Batch = Mapping[str, jax.Array]


def select_predictions(batch: Batch, *, capacity: float) -> dict[str, jax.Array]:
    """Gather each row's predicted positions, so that the MLM head sees P of them and not E.

    P = ceil(capacity * E). Where a row predicts more than P positions, those beyond P are left
    out and counted in `prediction_overflow` [B].

    Example (P = 2): encoder_loss_weights [0,1,0,1] over originals [7,8,9,5] gives
    prediction_positions [1,3], prediction_labels [8,5], prediction_weights [1,1]; unused slots
    have weight 0.

    Returns:
        The batch with int32 prediction_{positions,labels,weights,shuffled} [B,P] in place of
        encoder_loss_weights and encoder_shuffled.
    """
    batch = dict(batch)
    weights = batch.pop("encoder_loss_weights")
    shuffled = batch.pop("encoder_shuffled", jnp.zeros_like(weights))
    num = num_predictions(weights.shape[1], capacity=capacity)
    # top_k is stable: equal weights come in order of position.
    slots, positions = lax.top_k(weights, num)

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, positions, axis=1)

    batch["prediction_positions"] = positions
    batch["prediction_weights"] = slots
    batch["prediction_labels"] = take(batch["encoder_original_tokens"])
    batch["prediction_shuffled"] = take(shuffled) * slots
    batch["prediction_overflow"] = jnp.sum(weights, axis=1) - jnp.sum(slots, axis=1)
    return batch


def num_predictions(length: int, *, capacity: float) -> int:
    """P of `select_predictions` for rows of `length`."""
    return min(length, math.ceil(capacity * length))


def without_masked_lm(batch: Batch, active: jax.Array) -> dict[str, jax.Array]:
    """Where `active` (bool scalar) is False: the encoder reads original text, nothing is masked.

    PLUG drops masked LM for the last part of stage 2. The switch is data, not code, so the same
    compiled step runs before and after it.
    """
    batch = dict(batch)
    batch["encoder_input_tokens"] = jnp.where(
        active, batch["encoder_input_tokens"], batch["encoder_original_tokens"]
    )
    for name in ("prediction_weights", "prediction_shuffled", "prediction_overflow"):
        batch[name] = batch[name] * active
    return batch


def objective_weights(batch: Batch) -> dict[str, jax.Array]:
    """How many predictions each objective makes in the whole batch: float32 scalars."""
    names = {
        "tokens": "prediction_weights",
        "sentence": "sentence_weights",
        "decoder": "decoder_loss_weights",
    }
    return {
        objective: jnp.sum(batch[feature]).astype(jnp.float32)
        for objective, feature in names.items()
        if feature in batch
    }


def _apply(
    model: PlugModel,
    params: Any,
    method: str,
    *args: jax.Array,
    rng: jax.Array | None = None,
    **kwargs: Any,
) -> Any:
    rngs = None if rng is None else {"dropout": rng}
    return model.apply({"params": params}, *args, rngs=rngs, method=method, **kwargs)


def encode(model: PlugModel, params: Any, batch: Batch, rng: jax.Array | None) -> jax.Array:
    """Encoder states [B,E,M] of the batch; `rng` switches dropout on."""
    states: jax.Array = _apply(
        model,
        params,
        "encode",
        batch["encoder_input_tokens"],
        rng=rng,
        positions=batch["encoder_positions"],
        token_types=batch["encoder_token_types"],
        segment_ids=batch["encoder_segment_ids"],
        deterministic=rng is None,
    )
    return states


def token_metrics(
    model: PlugModel, params: Any, batch: Batch, encoded: jax.Array, chunk: int
) -> dict[str, Mean]:
    """Masked LM and word structural objective at the predicted positions.

    `tokens_loss` is what is trained: both together, one head and one mean (StructBERT, section 2).
    """
    positions = batch["prediction_positions"]
    hidden = jnp.take_along_axis(encoded, positions[..., None], axis=1)
    scores = _apply(model, params, "mlm_scores", hidden, batch["prediction_labels"], chunk=chunk)
    weights, shuffled = batch["prediction_weights"], batch["prediction_shuffled"]
    overflow = jnp.sum(batch["prediction_overflow"]).astype(jnp.float32)
    metrics = {
        "tokens_loss": Mean(*losses.weighted(scores.losses, weights)),
        "mlm_loss": Mean(*losses.weighted(scores.losses, weights - shuffled)),
        "mlm_accuracy": Mean(*losses.weighted(scores.hits, weights - shuffled)),
        "prediction_overflow": Mean(overflow, overflow + jnp.sum(weights)),
    }
    if "sentence_labels" in batch:  # the word structural objective belongs to stage 1
        metrics |= {
            "word_order_loss": Mean(*losses.weighted(scores.losses, shuffled)),
            "word_order_accuracy": Mean(*losses.weighted(scores.hits, shuffled)),
        }
    return metrics


def sentence_metrics(
    model: PlugModel, params: Any, batch: Batch, encoded: jax.Array
) -> dict[str, Mean]:
    """Sentence structural objective at each segment's [CLS]."""
    logits = _apply(model, params, "sentence_logits", encoded)
    scores = losses.score(logits, batch["sentence_labels"])
    weights = batch["sentence_weights"]
    return {
        "sentence_loss": Mean(*losses.weighted(scores.losses, weights)),
        "sentence_accuracy": Mean(*losses.weighted(scores.hits, weights)),
    }


def decoder_metrics(
    model: PlugModel,
    params: Any,
    batch: Batch,
    encoded: jax.Array,
    chunk: int,
    rng: jax.Array | None = None,
) -> dict[str, Mean]:
    """PALM's objective: the decoder predicts the text that follows the encoder's."""
    states = _apply(
        model,
        params,
        "decoder_states",
        batch["decoder_input_tokens"],
        encoded,
        rng=rng,
        positions=batch["decoder_positions"],
        segment_ids=batch["decoder_segment_ids"],
        encoder_segment_ids=batch["encoder_segment_ids"],
        deterministic=rng is None,
    )
    labels, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    scores = _apply(model, params, "decoder_scores", states, labels, chunk=chunk)
    return {
        "decoder_loss": Mean(*losses.weighted(scores.losses, weights)),
        "decoder_accuracy": Mean(*losses.weighted(scores.hits, weights)),
    }


def batch_metrics(batch: Batch) -> dict[str, Mean]:
    """`pad_fraction` over all rows, that of each side, and `tokens`: the count of real tokens."""
    one = jnp.ones((), jnp.float32)
    metrics = {}
    for side in ("encoder", "decoder"):
        if (segments := batch.get(f"{side}_segment_ids")) is not None:
            real = jnp.sum(segments > 0).astype(jnp.float32)
            metrics[f"{side}_pad_fraction"] = Mean(segments.size - real, segments.size * one)
    padding = sum((mean.total for mean in metrics.values()), 0 * one)
    size = sum((mean.weight for mean in metrics.values()), 0 * one)
    return {
        **metrics,
        "pad_fraction": Mean(padding, size),
        "tokens": Mean(size - padding, one),
    }


def training_metrics(
    model: PlugModel, params: Any, batch: Batch, rng: jax.Array, *, chunk: int = 0
) -> dict[str, Mean]:
    """All objectives of the batch with dropout; `TRAINED` names those whose sum is minimised.

    `chunk`: see `losses.chunked_score`.
    """
    encoder_rng, decoder_rng = jax.random.split(rng)
    encoded = encode(model, params, batch, encoder_rng)
    metrics = token_metrics(model, params, batch, encoded, chunk)
    if "sentence_labels" in batch:
        metrics |= sentence_metrics(model, params, batch, encoded)
    if "decoder_target_tokens" in batch:
        metrics |= decoder_metrics(model, params, batch, encoded, chunk, decoder_rng)
    return metrics


def evaluation_metrics(
    model: PlugModel, params: Any, batch: Batch, *, chunk: int = 0
) -> dict[str, Mean]:
    """All objectives without dropout.

    The decoder is always scored on uncorrupted text, as it is used, and masked LM on corrupted
    text: so the figures before and after the phase switch can be compared.
    """
    encoded = encode(model, params, batch, None)
    metrics = token_metrics(model, params, batch, encoded, chunk) | batch_metrics(batch)
    if "sentence_labels" in batch:
        metrics |= sentence_metrics(model, params, batch, encoded)
    if "decoder_target_tokens" in batch:
        clean = dict(batch, encoder_input_tokens=batch["encoder_original_tokens"])
        encoded = encode(model, params, clean, None)
        metrics |= decoder_metrics(model, params, batch, encoded, chunk)
    return metrics


# Equal weights: the loss is the sum of these means. Each by the objective whose weight it has.
TRAINED = {"tokens": "tokens_loss", "sentence": "sentence_loss", "decoder": "decoder_loss"}
