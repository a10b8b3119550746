"""Needs t5x. PlugModel with its objectives and generation, as a t5x model.

Axis letters: B rows, E encoder and D decoder row length, P predictions a row, N new tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import clu.metrics
import flax.core
import jax
import jax.numpy as jnp
from t5x import metrics as t5x_metrics
from t5x import models, optimizers

from plug_jax.checkpoints.parameters import abstract_params, init_params
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.decoding.sampling import row_rngs
from plug_jax.errors import PlugError
from plug_jax.inference.options import GenerationOptions, constraints_of, sampling_of
from plug_jax.inference.programs import Programs
from plug_jax.metrics import Metrics
from plug_jax.models.decoder import split_layers
from plug_jax.models.plug import PlugModel
from plug_jax.objectives import composition
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.continuation import Continuation
from plug_jax.objectives.forward import Batch
from plug_jax.objectives.masked_lm import MaskedLM
from plug_jax.objectives.objective import Progress
from plug_jax.t5x_bridge.axes import params_axes
from plug_jax.t5x_bridge.data import T5xFeatureConverter

_WEIGHT = "objective_weight/"  # float32 [B]: an objective's weight in the whole batch


class T5xPlugModel(models.BaseModel):
    """For MODEL: a PlugModel with a run's objectives.

    Not an `EncoderDecoderModel`, which has a single cross-entropy, of `decoder_target_tokens`, from
    full logits. The stage follows from the objectives.
    """

    def __init__(
        self,
        config: PlugConfig,
        objectives: Objectives,
        vocabulary: PlugVocabulary,
        optimizer_def: optimizers.OptimizerDefType | None = None,
        loss_chunk: int = 0,
        generation: GenerationOptions | None = None,
        seed: int | None = None,
    ) -> None:
        """A model.

        Args:
            config: its sizes.
            objectives: its training objectives.
            vocabulary: its vocabulary.
            optimizer_def: for training; None for inference.
            loss_chunk: positions per row whose logits are in memory at a time; 0: all.
            generation: options of `predict_batch`.
            seed: gives our own trainer's initial parameters and dropout masks with this
                RANDOM_SEED; None: t5x's own keys.

        Raises:
            PlugError: objectives that the model cannot train, or several texts per prompt.
        """
        composition.check_objectives(objectives, config)
        if generation is not None and generation.num_samples > 1:
            raise PlugError("t5x's infer.py writes one text a prompt: set NUM_SAMPLES to 1")
        super().__init__(optimizer_def=optimizer_def)
        self.seed = seed
        self.module = PlugModel(config)
        self._config, self._objectives = config, objectives
        self._vocabulary, self._generation = vocabulary, generation or GenerationOptions()
        self._loss_chunk = loss_chunk
        self.FEATURE_CONVERTER_CLS = functools.partial(
            T5xFeatureConverter, composition.features_of(objectives)
        )

    # Required by infer.py.

    @property
    def input_vocabulary(self) -> PlugVocabulary:
        """The encoder's vocabulary."""
        return self._vocabulary

    @property
    def output_vocabulary(self) -> PlugVocabulary:
        """The decoder's: the same."""
        return self._vocabulary

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Any, input_types: Any = None
    ) -> dict[str, Any]:
        """Initial parameters, and their logical axes."""
        del input_shapes, input_types
        rng = rng if self.seed is None else jax.random.key(self.seed)
        return {
            "params": init_params(self.module, rng, self._objectives),
            "params_axes": params_axes(abstract_params(self.module, self._objectives)),
        }

    # Training.

    def prepared(self, batch: Batch, progress: Progress) -> Batch:
        """The whole batch for `loss_fn`, or for micro-batches of it.

        t5x's `loss_fn` sees neither the step, at which an objective may end, nor the other
        micro-batches, over which a loss is a mean. So both become part of the batch.
        """
        batch = composition.prepare(self._objectives, batch, progress)
        weights = composition.objective_weights(self._objectives, batch)
        rows = batch["encoder_input_tokens"].shape[:1]
        return {
            **batch,
            **{_WEIGHT + name: jnp.broadcast_to(w, rows) for name, w in weights.items()},
        }

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array
    ) -> tuple[jax.Array, dict[str, clu.metrics.Metric]]:
        """The share of a `prepared` (micro-)batch in the whole batch's loss, and metrics."""
        weights = {one.name: batch[_WEIGHT + one.name][0] for one in self._objectives}
        batch = {k: v for k, v in batch.items() if not k.startswith(_WEIGHT)}
        forward = composition.training_forward(
            self._objectives, self.module, params, batch, dropout_rng, chunk=self._loss_chunk
        )
        metrics = composition.metrics_of(self._objectives, forward)
        loss = composition.loss_of(self._objectives, metrics, weights)
        return loss, _t5x_metrics(metrics | composition.batch_metrics(batch), loss)

    def eval_fn(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, clu.metrics.Metric]]:
        """The loss of an unprepared batch without dropout, and metrics."""
        metrics = composition.evaluation_metrics(
            self._objectives, self.module, params, batch, chunk=self._loss_chunk
        )
        weights = {one.name: metrics[f"{one.name}_loss"].weight for one in self._objectives}
        loss = composition.loss_of(self._objectives, metrics, weights)
        return loss, _t5x_metrics(metrics, loss)

    # infer.py and seqio's Evaluator: rows of one example each.

    def score_batch(
        self, params: Any, batch: Batch, return_intermediates: bool = False
    ) -> jax.Array:
        """float32 [B]: log-likelihood of the continuation, or without one of the masked tokens."""
        if return_intermediates:
            raise PlugError("score_batch has no intermediates: leave return_intermediates out")
        kinds = (Continuation, MaskedLM)
        scored = [one for kind in kinds for one in self._objectives if isinstance(one, kind)]
        if not scored:
            raise PlugError("there is nothing to score: OBJECTIVES has no Continuation or MaskedLM")
        forward = composition.scoring_forward(
            self._objectives, self.module, params, batch, chunk=self._loss_chunk
        )
        scores, weights = scored[0].scores(forward)
        return -jnp.sum(scores.losses * weights, axis=-1)

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A continuation of each row's text, int32 [B, N], and `scores`, its log-likelihood [B].

        Generated by the cached decoder like `plug-jax generate`, from the encoder's uncorrupted
        text. Texts are padded with [PAD].
        """
        if not self._config.num_decoder_layers:
            raise PlugError("a model without a decoder writes no text: set infer.mode to 'score'")
        prompts = batch.get("encoder_original_tokens", batch["encoder_input_tokens"])
        segment_ids = batch["encoder_segment_ids"]
        tokens, lengths, scores = self._write(params, prompts, segment_ids, rng)
        kept = jnp.arange(tokens.shape[1]) < lengths[:, None]
        return jnp.where(kept, tokens, self._vocabulary.pad_id), {"scores": scores}

    def _write(
        self, params: Any, prompts: jax.Array, segment_ids: jax.Array, rng: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens [B,N], lengths [B] and log-likelihoods [B]."""
        options, v, max_decode_length = (
            self._generation,
            self._vocabulary,
            self._generation.max_new_tokens,
        )
        programs = Programs(PlugModel(self._config, unstacked_layers=True), v.cls_id, v.sep_id)
        params = split_layers(flax.core.unfreeze(params))
        rows = [options] * (len(prompts) * options.num_beams)
        constraints = constraints_of(rows, self._config, v)
        if options.num_beams > 1:
            found = programs.beam_search(
                params,
                prompts,
                segment_ids,
                constraints,
                jnp.float32(options.length_penalty),
                jnp.float32(options.length_offset),
                num_beams=options.num_beams,
                max_decode_length=max_decode_length,
                penalties=options.penalties,
            )
            return found.tokens[:, 0], found.lengths[:, 0], found.log_probs[:, 0]
        key = jax.random.key(0) if rng is None else jax.random.wrap_key_data(rng)
        keys = row_rngs(jax.random.fold_in(key, options.seed), len(prompts))
        state = programs.advance(
            params,
            programs.start(
                params, prompts, segment_ids, max_decode_length=max_decode_length, rows_per_prompt=1
            ),
            constraints,
            sampling_of(rows, keys),
            jnp.int32(max_decode_length),
            candidates=options.candidates(self._config),
            penalties=options.penalties,
        )
        # Including the [SEP] that ends the text.
        counted = jnp.arange(max_decode_length) < (state.lengths + state.stopped)[:, None]
        return (
            state.tokens,
            state.lengths,
            jnp.sum(jnp.where(counted, state.log_probs, 0.0), axis=1),
        )


def _t5x_metrics(metrics: Metrics, loss: jax.Array) -> dict[str, clu.metrics.Metric]:
    """Means as clu metrics, the loss per step, and the speed."""
    found: dict[str, Any] = {
        name: clu.metrics.Average(total=mean.total, count=mean.weight)
        for name, mean in metrics.items()
        if name != "tokens"
    }
    if "tokens" in metrics:
        found["timing/tokens_per_second"] = t5x_metrics.TimeRate.from_model_output(
            numerator=metrics["tokens"].total
        )
    return {**found, "loss": t5x_metrics.AveragePerStep(total=loss, steps=1)}
