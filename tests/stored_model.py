"""The small lively model as a checkpoint on disk, whose vocabulary is Chinese characters."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from plug_jax.data.vocabularies import SPECIAL_PIECES, WordPieceVocabulary
from plug_jax.training.checkpointing import CheckpointConfig, Checkpoints
from plug_jax.training.state import TrainState
from tests.inference_model import CONFIG, lively_params

# Each a piece of its own, so texts and ids correspond one to one.
CHARACTERS = (
    "天地人你我他来去上下大小好多年月日时分水火木金土山石田力口手心门"
    "东西南北春夏秋冬风花雪马牛羊鸟鱼虫红"
)


class _NoData:
    def save(self, directory: object) -> None:
        pass

    def restore(self, directory: object) -> None:
        pass


def write_stored_model(directory: Path) -> Path:
    """MODEL_DIR of `tests.inference_model.CONFIG`."""
    pieces = [*SPECIAL_PIECES, "[unused1]", *CHARACTERS]
    pieces += [f"[unused{n}]" for n in range(2, 2 + CONFIG.vocab_size - len(pieces))]
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    params = jax.tree.map(jnp.asarray, lively_params(CONFIG))
    checkpoints = Checkpoints(
        directory,
        CheckpointConfig(every=1),
        model=CONFIG,
        vocabulary=WordPieceVocabulary(vocabulary),
    )
    checkpoints.save(TrainState(jnp.int32(1), params, ()), _NoData())
    checkpoints.close()
    return directory
