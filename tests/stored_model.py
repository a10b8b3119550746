"""The small `lively_model` as a checkpoint on disk, with a vocabulary of Chinese characters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from plug_jax.data.vocabularies.vocabulary import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.state import TrainState
from tests import reference_model
from tests.inference_model import CONFIG, lively_params

# Each is a piece of its own, so texts and ids correspond one to one.
CHARACTERS = (
    "天地人你我他来去上下大小好多年月日时分水火木金土山石田力口手心门"
    "东西南北春夏秋冬风花雪马牛羊鸟鱼虫红"
)


class NoData:
    """A data position without data."""

    def save(self, directory: object) -> None:
        pass

    def restore(self, directory: object) -> None:
        pass


def write_stored_model(
    directory: Path, *, decoder: bool = True, characters: Iterable[str] = CHARACTERS
) -> Path:
    """MODEL_DIR of `tests.inference_model.CONFIG`, or of its encoder alone.

    Its vocabulary is as large as the `characters` need.
    """
    vocabulary = WordPieceVocabulary(write_vocabulary(directory, CONFIG.vocab_size, characters))
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary.vocab_size)
    if not decoder:
        config = dataclasses.replace(config, num_decoder_layers=0)
    params = lively_params(config) if decoder else reference_model.random_params(config, seed=0)
    params = jax.tree.map(jnp.asarray, params)
    checkpoints = Checkpoints(
        directory,
        CheckpointConfig(every=1),
        model=config,
        vocabulary=vocabulary,
    )
    checkpoints.save(TrainState(jnp.int32(1), params, ()), NoData())
    checkpoints.close()
    return directory


def write_vocabulary(directory: Path, least: int, characters: Iterable[str] = CHARACTERS) -> Path:
    """vocab.txt with the special pieces, the characters, and others up to `least` pieces."""
    pieces = [*SPECIAL_PIECES, "[unused1]", *characters]
    pieces += [f"[unused{n}]" for n in range(2, 2 + least - len(pieces))]
    path = directory / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path
