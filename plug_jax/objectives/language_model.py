"""The objective of a decoder alone, like GPT-3: each token from the preceding ones.

It reads the encoder's and decoder's texts of PALM's task as one text, so that both models can be
compared on the same rows. B rows, E encoder and D decoder length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.data import features
from plug_jax.data.features import Feature
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape, decoder_flops, vocabulary_flops
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.objective import count


class LanguageModel(Continuation):
    """Every token of both texts; `decoder_loss` is that of the second, given the first."""

    name: ClassVar[str] = "language_model"
    reads_encoder: ClassVar[bool] = False
    stage: ClassVar[int | None] = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """Those of PALM's task: the original text and its continuation."""
        return (*features.ENCODER_TEXT, *features.MASKED_LM, *features.CONTINUATION)

    def problem(self, config: PlugConfig) -> str | None:
        """It needs a decoder without an encoder."""
        if not config.num_encoder_layers:
            return None
        return (
            "the objective LanguageModel is for a decoder-only model, and this one has an encoder "
            "(PlugConfig.num_encoder_layers is not 0): add models/decoder_alone.gin, or set other "
            "OBJECTIVES"
        )

    def predictions(self, batch: Batch) -> jax.Array:
        """The tokens predicted, of both texts."""
        return count(one_text(batch)["loss_weights"])

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`language_model_loss` over both; `decoder_loss` and `decoder_accuracy` of the second."""
        text = one_text(forward.batch)
        states = forward.apply(
            "decoder_states",
            text["input_tokens"],
            None,
            dropout=True,
            positions=text["positions"],
            segment_ids=text["segment_ids"],
        )
        scores = forward.apply("decoder_scores", states, text["targets"], chunk=forward.chunk)
        weights = text["loss_weights"]
        first = forward.batch["encoder_input_tokens"].shape[1]
        following = weights.at[:, :first].set(0)
        return {
            "language_model_loss": Mean(*losses.weighted(scores.losses, weights)),
            "decoder_loss": Mean(*losses.weighted(scores.losses, following)),
            "decoder_accuracy": Mean(*losses.weighted(scores.hits, following)),
        }

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """The decoder over both texts, its attention, and the logits of both."""
        predictions = rows.batch_size * (rows.encoder + rows.decoder)
        return {
            **decoder_flops(config, rows),
            "decoder_logits": vocabulary_flops(config, predictions),
        }


def one_text(batch: Batch) -> dict[str, jax.Array]:
    """Both texts of each example as one, int32 [B,E+D] each; weight 0 where nothing is predicted.

    The row is the encoder's followed by the decoder's: a token sees preceding ones of its segment,
    so the second text sees all of the first. Its positions continue those of the first.

    Example: [CLS] a b [SEP] and [CLS] c (targets c [SEP]) predict a b [SEP], nothing after the
    first [SEP], then c [SEP], at positions 0 1 2 3 4 5.
    """
    first, second = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
    written = batch["encoder_original_tokens"]
    # Not at padding: its positions could be beyond the table, and NaN there spreads to the loss.
    same_example = (second[:, :, None] == first[:, None, :]) & (second > 0)[:, :, None]
    offsets = jnp.sum(same_example, axis=2, dtype=jnp.int32)
    # The next token of the first text, if it is in the same example.
    following = jnp.roll(first, -1, axis=1).at[:, -1].set(0)
    goes_on = ((first > 0) & (following == first)).astype(jnp.int32)

    def join(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.concatenate([one, other], axis=1)

    return {
        "input_tokens": join(written, batch["decoder_input_tokens"]),
        "targets": join(jnp.roll(written, -1, axis=1), batch["decoder_target_tokens"]),
        "loss_weights": join(goes_on, batch["decoder_loss_weights"]),
        "segment_ids": join(first, second),
        "positions": join(batch["encoder_positions"], batch["decoder_positions"] + offsets),
    }
