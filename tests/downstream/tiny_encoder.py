"""A checkpoint of a tiny encoder whose vocabulary has every character of the small CLUE files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from plug_jax.checkpoints.parameters import init_params
from plug_jax.config import PlugConfig
from plug_jax.data.vocabularies.vocabulary import load_vocabulary
from plug_jax.downstream.formats import Format
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.state import TrainState
from tests.clue.official import write_vocabulary
from tests.stored_model import NoData


def write_encoder(directory: Path, *, max_positions: int = 128, **fields: object) -> Path:
    """MODEL_DIR of an untrained encoder."""
    return _write(directory, {"max_positions": max_positions, **fields})


def write_fine_tuned(directory: Path, name: str, format: Format, **fields: object) -> Path:
    """MODEL_DIR of an untrained encoder and head, as fine-tuning for the seqio task leaves it."""
    task = {"name": name, **format.description()}
    return _write(directory, fields, (format.make_objective(),), task)


def _write(
    directory: Path,
    fields: Mapping[str, Any],
    objectives: Objectives = (),
    task: Mapping[str, Any] | None = None,
) -> Path:
    directory.mkdir(parents=True)
    vocabulary = load_vocabulary(write_vocabulary(directory / "vocab.txt"))
    config = PlugConfig(
        **{
            "vocab_size": vocabulary.vocab_size,
            "hidden_size": 32,
            "num_encoder_layers": 1,
            "num_heads": 4,
            "head_dim": 8,
            "mlp_dim": 64,
            "max_positions": 128,
            "init_std": 0.05,
            **fields,
        }
    )
    params = jax.jit(lambda: init_params(PlugModel(config), jax.random.key(0), objectives))()
    checkpoints = Checkpoints(
        directory, CheckpointConfig(every=1), model=config, vocabulary=vocabulary, task=task
    )
    checkpoints.save(TrainState(jnp.int32(1), params, ()), NoData())
    checkpoints.close()
    return directory
