"""Import of checkpoints of t5x's train.py."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from plug_jax.checkpoints.parameters import abstract_params
from plug_jax.checkpoints.reading import stored_arrays
from plug_jax.config import PlugConfig
from plug_jax.convert.checkpoint_writer import write_checkpoint
from plug_jax.convert.from_torch import Imported
from plug_jax.convert.progress import atomic_output, progress_bar
from plug_jax.convert.stored_arrays import LazyArray, StoredTree, chunk_shape
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary, save_vocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.parameter_paths import by_path

_CHECKPOINT = "checkpoint_"  # t5x's prefix of the step
_DESCRIPTION = "plug_jax"  # next to the checkpoints


def write_description(
    model_dir: str | os.PathLike[str], config: PlugConfig, vocabulary: PlugVocabulary
) -> None:
    """Write MODEL_DIR/plug_jax: what a t5x run trains, which its checkpoints do not record."""
    directory = epath.Path(model_dir) / _DESCRIPTION
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    save_vocabulary(vocabulary, directory / "vocabulary")


def import_t5x(source: Path, output: Path) -> Imported:
    """Write a t5x checkpoint as a MODEL_DIR at `output`, which appears when it is complete.

    `source` is `.../checkpoint_N`, or t5x's MODEL_DIR for the newest one. One layer is in memory at
    a time; arrays keep their dtype.

    Raises:
        PlugError: no checkpoint, or one from a run without plug-jax; `output` exists.
    """
    step, checkpoint = _newest(source)
    config, vocabulary = _read_description(checkpoint.parent)
    stored = by_path(stored_arrays(checkpoint, "state")["target"])
    boxed = abstract_params(PlugModel(config))
    axes = {path: tuple(box.names) for path, box in by_path(boxed).items()}
    if missing := sorted(axes.keys() - stored.keys()):
        raise PlugError(
            f"{checkpoint} has no {', '.join(missing)}: it belongs to another model than "
            f"{checkpoint.parent / _DESCRIPTION}/config.json describes"
        )
    tree = StoredTree(checkpoint / "state")
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in stored.values())
    with (
        atomic_output(output, reads=(checkpoint,)) as partial,
        progress_bar("importing", size) as advance,
    ):

        def lazy(path: str) -> LazyArray:
            leaf = stored[path]
            of = axes.get(path, (None,) * len(leaf.shape))  # heads: t5x's axes of them are lost
            stacked = of[:1] == ("layers",)

            def make(layer: int) -> np.ndarray:
                array = tree.open(f"target/{path}")
                read: np.ndarray = (array[layer] if stacked else array).read().result()
                advance(read.nbytes)
                return read

            return LazyArray(
                leaf.shape, leaf.dtype, chunk_shape(leaf.shape, of, leaf.dtype), stacked, make
            )

        write_checkpoint(
            partial,
            params=unflatten_dict({path: lazy(path) for path in stored}, sep="/"),
            unused={},
            config=config,
            vocabulary=vocabulary,
            converted_from={"layout": "t5x", "step": step},
        )
    return Imported(config, len(stored), size, has_vocabulary=True)


def _newest(source: Path) -> tuple[int, Path]:
    """(step, path) of the checkpoint itself, or of the newest in a MODEL_DIR."""
    found = {
        int(path.name.removeprefix(_CHECKPOINT)): path
        for path in (source, *source.glob(f"{_CHECKPOINT}*"))
        if path.name.removeprefix(_CHECKPOINT).isdecimal() and (path / "state").is_dir()
    }
    if not found:
        raise PlugError(
            f"no checkpoint of t5x in {source}: give its MODEL_DIR, or MODEL_DIR/checkpoint_N"
        )
    return max(found.items())


def _read_description(model_dir: Path) -> tuple[PlugConfig, PlugVocabulary]:
    directory = model_dir / _DESCRIPTION
    try:
        settings = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise PlugError(
            f"{directory}/config.json cannot be read ({error}): t5x's train.py writes it with the "
            "files of gin_configs/t5x, beside its checkpoints"
        ) from error
    return PlugConfig.from_dict(settings), load_vocabulary(directory / "vocabulary")
