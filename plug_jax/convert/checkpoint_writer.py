"""A checkpoint of ours made of lazily produced arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from plug_jax.config import PlugConfig
from plug_jax.convert.stored_arrays import write_arrays
from plug_jax.data.vocabularies import PlugVocabulary, save_vocabulary
from plug_jax.training.checkpoint_format import CHECKPOINTS, FilesSave, PlainPath, handlers
from plug_jax.training.checksums import write_checksums
from plug_jax.training.saved_model import vocabulary_fingerprint


def write_checkpoint(
    directory: Path,
    *,
    params: Mapping[str, Any],
    unused: Mapping[str, Any],
    config: PlugConfig,
    vocabulary: PlugVocabulary | None,
    converted_from: Mapping[str, Any],
) -> None:
    """Write MODEL_DIR/checkpoints/0 of trees of LazyArrays.

    Args:
        directory: the MODEL_DIR, which does not exist.
        params: the parameters.
        unused: what the model has no use for and an export gives back; may be empty.
        config: of the model.
        vocabulary: its vocabulary; without one, commands that need it will say so.
        converted_from: a JSON object on where the arrays are from: for the export, and for those
            who need a head that was not initialised anew.
    """
    small: dict[str, Any] = {
        "metadata": ocp.args.JsonSave(
            {
                "plug_config": config.to_dict(),
                "vocabulary_fingerprint": vocabulary and vocabulary_fingerprint(vocabulary),
                "converted_from": dict(converted_from),
            }
        )
    }
    if vocabulary is not None:
        small["vocabulary"] = FilesSave(lambda path: save_vocabulary(vocabulary, path))
    path = PlainPath.of(directory) / CHECKPOINTS / "0"
    path.parent.mkdir(parents=True)
    # Directories are there before anything is written to them.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(
        handler_registry=handlers(),
        composite_options=ocp.CompositeOptions(async_options=options),
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(**small))
    # In this thread, not in one of orbax's: what goes wrong, or Ctrl-C, ends the writing.
    for name, tree in (("params", params), ("unused", unused)):
        if tree:
            (path / name).mkdir()
            write_arrays(tree, path / name)
    write_checksums(path)
