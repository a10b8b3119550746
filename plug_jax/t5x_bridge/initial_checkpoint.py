"""Needs t5x. INITIAL_CHECKPOINT: a new run begins with the parameters of another one."""

from __future__ import annotations

from typing import Any

import flax.core
import jax
from absl import logging
from t5x import utils as t5x_utils

from plug_jax.data.vocabularies import PlugVocabulary
from plug_jax.training.initial_checkpoint import initialize_from
from plug_jax.training.state import StateLayout, TrainState


class InitialCheckpoint(t5x_utils.TrainStateInitializer):
    """For `train.train_state_initializer_cls`: what a MODEL_DIR of plug-jax has, as there.

    t5x's own way, a RestoreCheckpointConfig with `fallback_to_scratch`, also restores the place in
    the other stage's data as soon as this run saves its own, and ends there.
    """

    def __init__(
        self, *args: Any, initial_checkpoint: str, vocabulary: PlugVocabulary, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._path, self._vocabulary = initial_checkpoint, vocabulary

    def from_scratch(self, init_rng: jax.Array) -> Any:
        """A fresh state with the checkpoint's parameters. PlugError where they do not fit."""
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
