"""Masked LM and the word structural objective, which share a head and a mean.

B rows, E encoder length, P predictions per row, M model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plug_jax import losses
from plug_jax.config import PlugConfig
from plug_jax.data import features
from plug_jax.data.features import Feature
from plug_jax.data.preprocessors.masking import masked_language_model
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.task_settings import TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.metrics import Mean
from plug_jax.models.flops import RowShape, vocabulary_flops
from plug_jax.models.torch_tensors import Entry, linear, norm
from plug_jax.objectives.examples import Corruption, Example, Fate
from plug_jax.objectives.forward import Batch, Forward
from plug_jax.objectives.masking_tally import MaskingTally
from plug_jax.objectives.objective import Objective, Progress, count

# Rows differ in how much is predicted, so the capacity is larger than the mean: at least by the
# first factor, better by the second.
_LEAST_ROOM, _ROOM = 1.1, 1.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Predicts the originals of masked and, with `word_structural`, shuffled tokens.

    Both share one head and one mean, `tokens_loss` (StructBERT, section 2), with separate metrics.
    After the fraction `until` of the steps, the encoder reads the original text and nothing is
    predicted (PLUG drops masked LM for the last tenth of stage 2).
    """

    word_structural: bool = False  # the task shuffles windows too
    until: float = 1.0  # the fraction of the steps that has it
    # The fraction of an encoder row that may be predicted. Stage 1 predicts 24% on average (15%
    # masked, 9% shuffled), stage 2 15%; predictions beyond it are left out and counted.
    capacity: float = 0.375

    name: ClassVar[str] = "tokens"
    text_features: ClassVar[tuple[str, ...]] = ("encoder_original_tokens",)
    tensors: ClassVar[tuple[Entry, ...]] = (
        *linear("mlm_head/dense", "cls.predictions.transform.dense"),
        *norm("mlm_head/layer_norm", "cls.predictions.transform.LayerNorm"),
        Entry("mlm_head/bias", ("cls.predictions.bias",), split=0),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("until", "capacity"):
            if not 0.0 <= getattr(self, field) <= 1.0:
                raise PlugError(f"MaskedLM.{field} must be in [0, 1], got {getattr(self, field)}")

    @property
    def features(self) -> tuple[Feature, ...]:
        """The corrupted and original text, and where it is predicted."""
        words = features.WORD_STRUCTURAL if self.word_structural else ()
        return (*features.ENCODER_TEXT, *features.MASKED_LM, *words)

    def last_step(self, train_steps: int) -> int:
        """Number of steps with it; the next is the first without."""
        return round(self.until * train_steps)

    def num_predictions(self, length: int) -> int:
        """P for rows of `length`."""
        return min(length, math.ceil(self.capacity * length))

    def check_settings(self, settings: TaskSettings) -> None:
        """PlugError if the task predicts more of a full row than the capacity."""
        rate = settings.get(masked_language_model, "mask_rate")
        if rate is None:
            return
        share = rate
        if settings.uses(shuffle_windows):
            window, starts, moved_only = (
                settings.get(shuffle_windows, name)
                for name in ("window", "rate", "label_moved_only")
            )
            if None not in (window, starts, moved_only):
                # A window has no masked token. On average one token of each stays in its place.
                share += starts * (window - moved_only) * (1 - rate) ** window
        if self.capacity < min(1.0, _LEAST_ROOM * share):
            enough = min(1.0, math.ceil(100 * _ROOM * share) / 100)
            raise PlugError(
                f"The task predicts {share:.1%} of the tokens, in some rows more, but there is "
                f"room for {self.capacity:.1%} of a row, and the rest, at its end, would be left "
                f"out: set masked_lm.MaskedLM.capacity = {enough:g}, or mask and shuffle less."
            )

    def prepare(self, batch: Batch, progress: Progress | None) -> Batch:
        """Gather the predicted positions; past `until`, restore the original text."""
        batch = self.select_predictions(batch)
        if progress is None:
            return batch
        return self._switched(batch, progress.step < self.last_step(progress.train_steps))

    def select_predictions(self, batch: Batch) -> Batch:
        """Gather each row's predicted positions, so that the MLM head sees P instead of E.

        P = ceil(capacity * E). If a row predicts more than P positions, the excess is left out and
        counted in `prediction_overflow` [B].

        Example (P = 2): encoder_loss_weights [0,1,0,1] over originals [7,8,9,5] gives
        prediction_positions [1,3], prediction_labels [8,5], prediction_weights [1,1]; unused slots
        have weight 0.

        Returns:
            The batch with int32 prediction_{positions,labels,weights,shuffled} [B,P] in place of
            encoder_loss_weights and encoder_shuffled.
        """
        prepared = dict(batch)
        weights = prepared.pop("encoder_loss_weights")
        shuffled = prepared.pop("encoder_shuffled", jnp.zeros_like(weights))
        num = self.num_predictions(weights.shape[1])
        # top_k is stable: equal weights are in order of position.
        slots, positions = lax.top_k(weights, num)

        def take(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, positions, axis=1)

        prepared["prediction_positions"] = positions
        prepared["prediction_weights"] = slots
        prepared["prediction_labels"] = take(prepared["encoder_original_tokens"])
        prepared["prediction_shuffled"] = take(shuffled) * slots
        prepared["prediction_overflow"] = jnp.sum(weights, axis=1) - jnp.sum(slots, axis=1)
        return prepared

    def _switched(self, batch: Batch, active: jax.Array) -> Batch:
        """If `active` (bool scalar) is False: original text, and nothing to predict.

        The switch is data, not code, so the same compiled step runs before and after it.
        """
        clean = self.uncorrupted(batch)["encoder_input_tokens"]
        switched = dict(batch)
        switched["encoder_input_tokens"] = jnp.where(active, batch["encoder_input_tokens"], clean)
        for name in ("prediction_weights", "prediction_shuffled", "prediction_overflow"):
            switched[name] = batch[name] * active
        return switched

    def uncorrupted(self, batch: Batch) -> Batch:
        """The original text instead of the corrupted one."""
        return dict(batch, encoder_input_tokens=batch["encoder_original_tokens"])

    def predictions(self, batch: Batch) -> jax.Array:
        """The tokens predicted."""
        return count(batch["prediction_weights"])

    def metrics(self, forward: Forward) -> dict[str, Mean]:
        """`tokens_loss` of all; metrics of masked and of shuffled tokens, and the overflow."""
        batch = forward.batch
        scores, weights = self.scores(forward)
        shuffled = batch["prediction_shuffled"]
        overflow = count(batch["prediction_overflow"])
        metrics = {
            "tokens_loss": Mean(*losses.weighted(scores.losses, weights)),
            "mlm_loss": Mean(*losses.weighted(scores.losses, weights - shuffled)),
            "mlm_accuracy": Mean(*losses.weighted(scores.hits, weights - shuffled)),
            "prediction_overflow": Mean(overflow, overflow + jnp.sum(weights)),
        }
        if self.word_structural:
            metrics |= {
                "word_order_loss": Mean(*losses.weighted(scores.losses, shuffled)),
                "word_order_accuracy": Mean(*losses.weighted(scores.hits, shuffled)),
            }
        return metrics

    def scores(self, forward: Forward) -> tuple[losses.Scores, jax.Array]:
        """The scores of the predictions [B,P], and their int32 weights [B,P]."""
        batch = forward.batch
        positions = batch["prediction_positions"]
        hidden = jnp.take_along_axis(forward.encoded, positions[..., None], axis=1)
        weights = batch["prediction_weights"]
        scores = losses.score_predictions(
            functools.partial(forward.apply, "mlm_scores", chunk=forward.chunk),
            hidden,
            batch["prediction_labels"],
            weights,
        )
        return scores, weights

    def flops(self, config: PlugConfig, rows: RowShape) -> Mapping[str, int]:
        """The head at the predicted positions: a transform, and the unpadded vocabulary."""
        predictions = rows.batch_size * self.num_predictions(rows.encoder)
        transform = 2 * predictions * config.hidden_size**2
        return {"mlm_head": transform + vocabulary_flops(config, predictions)}

    @property
    def fates(self) -> tuple[Fate, ...]:
        """Masked, replaced, kept; and shuffled."""
        shuffled = (Fate.SHUFFLED,) if self.word_structural else ()
        return (Fate.MASKED, Fate.REPLACED, Fate.KEPT, *shuffled)

    def corruption(self, example: Example, vocabulary: PlugVocabulary) -> Corruption:
        """The fate of each token."""
        return Corruption.of(example, vocabulary.mask_id)

    def facts(self, example: Example, vocabulary: PlugVocabulary) -> Iterator[tuple[str, str]]:
        """Number of tokens by fate."""
        fates = self.corruption(example, vocabulary).fates
        counts = np.bincount(fates, minlength=len(Fate))
        yield "tokens", ", ".join(f"{counts[fate]} {fate.label}" for fate in Fate if counts[fate])

    def tally(self, vocabulary: PlugVocabulary, settings: TaskSettings) -> MaskingTally:
        """Rates of masking and shuffling."""
        return MaskingTally(vocabulary, settings, shuffles=self.word_structural)
