"""Writes a plug-jax checkpoint from lazily produced arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from plug_jax.checkpoints.checksums import write_checksums
from plug_jax.checkpoints.format import CHECKPOINTS, FilesSave, PlainPath, handlers
from plug_jax.checkpoints.saved_model import vocabulary_fingerprint
from plug_jax.config import PlugConfig
from plug_jax.convert.stored_arrays import write_arrays
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, save_vocabulary


def write_checkpoint(
    directory: Path,
    *,
    params: Mapping[str, Any],
    unused: Mapping[str, Any],
    config: PlugConfig,
    vocabulary: PlugVocabulary | None,
    converted_from: Mapping[str, Any],
) -> None:
    """Write MODEL_DIR/checkpoints/0 from trees of LazyArrays.

    Args:
        directory: the MODEL_DIR, which must not exist.
        params: the parameters.
        unused: arrays that the model does not use, kept for export; may be empty.
        config: the model's configuration.
        vocabulary: its vocabulary, if any; commands that need one will say so.
        converted_from: a JSON object with the arrays' origin, for export and to recognise newly
            initialised heads.
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
    # Make directories before anything is written to them.
    options = ocp.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(
        handler_registry=handlers(),
        composite_options=ocp.CompositeOptions(async_options=options),
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(**small))
    # In this thread, not one of orbax's, so that an error or Ctrl-C ends the writing.
    for name, tree in (("params", params), ("unused", unused)):
        if tree:
            (path / name).mkdir()
            write_arrays(tree, path / name)
    write_checksums(path)
