"""Needs t5x. A run's description in its MODEL_DIR, with which plug-jax reads its checkpoints."""

from __future__ import annotations

from typing import Any

import jax
from t5x import gin_utils

from plug_jax.config import PlugConfig
from plug_jax.convert.from_t5x import write_description
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary


def summarize_config(
    model_dir: str,
    summary_writer: Any,
    step: int,
    *,
    config: PlugConfig,
    vocabulary: PlugVocabulary,
) -> None:
    """For `train.summarize_config_fn`: t5x's config.gin, and `plug_jax/` next to it."""
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        write_description(model_dir, config, vocabulary)
