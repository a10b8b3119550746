"""The items of a checkpoint, and the orbax manager that reads and writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

CHECKPOINTS = "checkpoints"


def open_manager(
    directory: epath.Path, *, max_to_keep: int | None = None, create: bool = False
) -> ocp.CheckpointManager:
    """The manager of MODEL_DIR/checkpoints."""
    return ocp.CheckpointManager(
        directory.resolve(),
        options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, create=create),
        item_handlers=item_handlers(),
    )


def item_handlers() -> dict[str, ocp.CheckpointHandler]:
    """What writes and reads each item."""
    return {
        "params": ocp.StandardCheckpointHandler(),
        "unused": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "data": FilesHandler(),
        "vocabulary": FilesHandler(),
        "metadata": ocp.JsonCheckpointHandler(),
    }


class FilesHandler(ocp.CheckpointHandler):
    """An orbax item that is a directory of files, written and read by plain functions."""

    def save(self, directory: epath.Path, args: FilesSave) -> None:
        """Let `args.write` fill the directory, on every process."""
        args.write(directory)

    def restore(self, directory: epath.Path, args: FilesRestore) -> None:
        """Let `args.read` read the directory, on every process."""
        args.read(directory)


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(ocp.args.CheckpointArgs):
    """What to write."""

    write: Callable[[Any], None]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(ocp.args.CheckpointArgs):
    """What to read."""

    read: Callable[[Any], None]
