"""Needs t5x. INITIAL_CHECKPOINT: a new run starts from another one's parameters."""

from __future__ import annotations

from typing import Any

import flax.core
import jax
from absl import logging
from t5x import utils as t5x_utils

from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.training.initial_checkpoint import initialize_from
from plug_jax.training.state import StateLayout, TrainState


class InitialCheckpoint(t5x_utils.TrainStateInitializer):
    """For `train.train_state_initializer_cls`: parameters from a plug-jax MODEL_DIR.

    t5x's own way, a RestoreCheckpointConfig with `fallback_to_scratch`, would also restore the
    position in the other stage's data as soon as this run saves its own, and fail.
    """

    def __init__(
        self, *args: Any, initial_checkpoint: str, vocabulary: PlugVocabulary, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._path, self._vocabulary = initial_checkpoint, vocabulary

    def from_scratch(self, init_rng: jax.Array) -> Any:
        """A new state with the checkpoint's parameters. PlugError if they do not fit."""
        state = super().from_scratch(init_rng)
        params = flax.core.unfreeze(state.params)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        shardings = jax.tree.map(lambda x: x.sharding, params)
        layout = StateLayout(
            abstract=TrainState(0, shapes, ()),
            shardings=TrainState(None, shardings, ()),
            gradients=None,
        )
        taken, note = initialize_from(
            self._path, TrainState(0, params, ()), layout, vocabulary=self._vocabulary
        )
        if note is not None:
            logging.info(note)
        return state.replace_params(flax.core.freeze(taken.params))
