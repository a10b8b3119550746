"""Reads parts of a checkpoint; an error names the part that cannot be read."""

from __future__ import annotations

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from plug_jax.checkpoints.checksums import files
from plug_jax.checkpoints.declarations import find_false_arrays, find_false_model
from plug_jax.checkpoints.format import PlainPath
from plug_jax.checkpoints.integrity import (
    Damage,
    DamagedCheckpointError,
    find_damage,
    reading,
    steps_in,
)
from plug_jax.config import PlugConfig


def best_step(directory: epath.Path) -> int | None:
    """The checkpoint to use: the best if the run keeps one, else the newest; None without any.

    Each checkpoint with metrics is better than those before it.

    Raises:
        DamagedCheckpointError: the best one cannot be determined.
    """
    steps = steps_in(directory)
    if any((directory / str(step) / "metrics").exists() for step in steps):
        for step in reversed(steps):
            path = directory / str(step)
            if damage := find_damage(path, ("metadata", "metrics")):
                raise DamagedCheckpointError.at(path, damage)
            scores = path / "metrics" / "metrics"
            if scores.exists() and json.loads(scores.read_text()):
                return step
    return max(steps, default=None)


def read_metadata(step: epath.Path) -> dict[str, Any]:
    """The `metadata` of a step."""
    with reading(step, "metadata/metadata"):
        metadata: dict[str, Any] = json.loads((step / "metadata" / "metadata").read_text())
        metadata["vocabulary_fingerprint"]
        if what := find_false_model(metadata["plug_config"]):
            raise DamagedCheckpointError.at(step, Damage("metadata/metadata", what))
        PlugConfig.from_dict(metadata["plug_config"])
    return metadata


def stored_arrays(step: epath.Path, item: str, *, expected: Any = ()) -> Any:
    """Shapes and dtypes of an item's arrays: nested dicts of ShapeDtypeStructs.

    `expected`: a tree of those for which the caller has memory. As many bytes are plausible however
    small the files are: an optimizer's arrays are zeros while every update is skipped.

    Raises:
        DamagedCheckpointError: the item's declaration cannot be true.
    """
    directory = PlainPath.of(step / item)
    with reading(step, item):
        tree = ocp.StandardCheckpointHandler().metadata(directory)
        leaves = [
            (jax.tree_util.keystr(path), leaf.shape, leaf.dtype.itemsize, leaf.storage.chunk_shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
        ]
        stored = sum((directory / name).stat().length for name in files(directory))
        plausible = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(expected))
        if what := find_false_arrays(leaves, stored, plausible=plausible):
            raise DamagedCheckpointError.at(step, Damage(item, what))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(tree))


def restore_part(step: epath.Path, item: str, target: Any) -> Any:
    """Restore the arrays of an item that are in `target`, ShapeDtypeStructs with shardings.

    All of them must be stored.
    """
    args = ocp.args.PyTreeRestore(
        item=target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    with (
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
        reading(step, item),
    ):
        return checkpointer.restore(PlainPath.of(step / item), args=args)
