"""A checkpoint opened for reading: by inference, evaluation, conversion and the next stage."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from plug_jax.checkpoints.format import CHECKPOINTS, PlainPath
from plug_jax.checkpoints.integrity import (
    Damage,
    DamagedCheckpointError,
    find_damage,
    find_damage_together,
)
from plug_jax.checkpoints.parameters import HEADS, abstract_params, with_shardings
from plug_jax.checkpoints.reading import best_step, read_metadata, restore_part, stored_arrays
from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.sources.file_source import name_some
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary, load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives
from plug_jax.partitioning import Partitioner
from plug_jax.techniques.lora import LORA, Lora


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A checkpoint opened for reading: its description, before any array is read."""

    path: epath.Path  # .../checkpoints/<step>
    config: PlugConfig  # with attention "dot", which infers on any device with any row length
    vocabulary_fingerprint: str | None  # None: converted from weights without a vocabulary
    converted_from: Mapping[str, Any] | None = None  # the origin that `plug-jax convert` recorded
    # The task that it was fine-tuned for, for `plug_jax.downstream.kinds`; None: not fine-tuned.
    task: Mapping[str, Any] | None = None
    lora: Lora | None = None  # stored separately; merged when parameters are read

    @property
    def step(self) -> int:
        """The training step it was saved at."""
        return int(self.path.name)

    @property
    def vocabulary_path(self) -> str:
        """Path of its vocabulary, for `load_vocabulary`. PlugError if it has none."""
        if self.vocabulary_fingerprint is None:
            raise PlugError(
                f"{self.path} was converted without a vocabulary, which this needs; run `plug-jax "
                "convert` again with --vocabulary vocab.txt, the file that belongs to the weights"
            )
        return os.fspath(self.path / "vocabulary")

    def vocabulary(self) -> PlugVocabulary:
        """The vocabulary that the model was trained with. PlugError if it has none."""
        return load_vocabulary(self.vocabulary_path)

    def param_shapes(self) -> Any:
        """The parameter tree as it is read, as ShapeDtypeStructs."""
        return {name: part for name, part in self._stored_shapes().items() if name != LORA}

    def check(self, *items: str) -> None:
        """Verify every byte of some items, such as "params"; each process reads its share.

        Raises:
            DamagedCheckpointError: an item is damaged; raised on every process.
        """
        if damage := find_damage_together(self.path, items):
            raise DamagedCheckpointError.at(self.path, damage)

    def _stored_shapes(self) -> dict[str, Any]:
        return dict(stored_arrays(self.path, "params"))

    def params(self, shardings: Any, dtype: DTypeLike | None = None, *, verify: bool = True) -> Any:
        """The parameters, read directly into a matching tree of shardings.

        The decoder, or objectives' heads, are not read if the shardings leave them out. Each
        process reads only what its devices hold. `dtype` None keeps each array's stored dtype:
        float32 from training, any in a converted checkpoint. All processes must call it.

        Args:
            shardings: of the parameters wanted.
            dtype: of all arrays.
            verify: check what is read against its checksums first.

        Raises:
            PlugError: heads that are not stored.
            DamagedCheckpointError: it is damaged, or does not match its model configuration.
        """
        if verify:
            self.check("params")
        stored = self._stored_shapes()
        self._check_shapes(stored)
        lora = stored.pop(LORA, {})
        if "decoder" not in shardings:
            stored.pop("decoder", None)
            lora.pop("decoder", None)
        heads, wanted = stored.pop(HEADS, {}), shardings.get(HEADS, {})
        if missing := sorted(set(wanted) - set(heads)):
            raise PlugError(
                f"{self.path} has no head for the objective {', '.join(missing)}: it was trained "
                f"with {', '.join(sorted(heads)) or 'none that has a head of its own'}"
            )
        if wanted:
            stored[HEADS] = {name: heads[name] for name in wanted}
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s),
            stored,
            shardings,
        )
        if self.lora is None:
            return restore_part(self.path, "params", target)
        return self._merged(self.lora, target, lora)

    def _merged(self, lora: Lora, target: Any, shapes: Any) -> Any:
        """The parameters `target`, with LoRA's products added before the conversion of dtype."""
        anywhere = jax.tree.leaves(target)[0].sharding
        whole = anywhere.update(spec=PartitionSpec()) if hasattr(anywhere, "spec") else anywhere
        stored = {**target, LORA: with_shardings(shapes, jax.tree.map(lambda _: whole, shapes))}
        wide = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding),
            stored,
        )
        merge = jax.jit(
            lambda params: jax.tree.map(
                lambda leaf, wanted: leaf.astype(wanted.dtype), lora.merge(params), target
            ),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, target),
        )
        return merge(restore_part(self.path, "params", wide))

    def _check_shapes(self, stored: Any) -> None:
        """Raises DamagedCheckpointError unless the model's parameters are there, as floats."""
        names = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        found = {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
        boxed = abstract_params(PlugModel(self.config))
        for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(boxed)):
            name = names(path)
            there = found.get(name)
            if there is None or there.shape != leaf.shape:
                what = "no array" if there is None else f"one of {there.shape}"
                what = f"holds for {name} {what}, and its metadata are of one of {leaf.shape}"
            elif not jnp.issubdtype(there.dtype, jnp.floating):
                what = f"holds for {name} numbers of {there.dtype}"
            else:
                continue
            raise DamagedCheckpointError.at(self.path, Damage("params", what))


def _found_below(path: str | os.PathLike[str]) -> str:
    """The MODEL_DIRs directly in a local directory, for the message that it is none itself."""
    below = Path(os.path.expanduser(path)).glob(f"*/{CHECKPOINTS}")
    found = sorted(os.fspath(one.parent) for one in below)
    return f"; there are {name_some(found)}" if found else ""


def open_checkpoint(path: str | os.PathLike[str]) -> SavedModel:
    """Open a MODEL_DIR, or one step of it, MODEL_DIR/checkpoints/<step>.

    In a MODEL_DIR it is the best checkpoint if the run keeps one, else the newest.

    Small files are checked against their checksums here, arrays when they are read.

    Raises:
        PlugError: there is no complete checkpoint at that path.
        DamagedCheckpointError: the checkpoint is damaged.
    """
    root = PlainPath.of(path)
    if root.name.isdecimal() and root.parent.name == CHECKPOINTS and root.exists():
        step = root
    else:
        root = root / CHECKPOINTS if (root / CHECKPOINTS).exists() else root
        found = best_step(root)
        if found is None:
            raise PlugError(
                f"no checkpoint in {os.fspath(path)}: give a MODEL_DIR that `plug-jax train` or "
                f"`plug-jax convert` wrote, or MODEL_DIR/checkpoints/<step>{_found_below(path)}"
            )
        step = root / str(found)
    if damage := find_damage(step, ("metadata", "vocabulary")):
        raise DamagedCheckpointError.at(step, damage)
    metadata = read_metadata(step)
    return SavedModel(
        step,
        PlugConfig.from_dict({**metadata["plug_config"], "attention": "dot"}),
        metadata["vocabulary_fingerprint"],
        metadata.get("converted_from"),
        metadata.get("task"),
        lora_of(metadata),
    )


@typed
def vocabulary_path(checkpoint: str | os.PathLike[str]) -> str:
    """Path of a checkpoint's vocabulary, for `load_vocabulary`."""
    return open_checkpoint(checkpoint).vocabulary_path


def load_for_inference(
    path: str | os.PathLike[str],
    partitioner: Partitioner | None = None,
    dtype: ComputeDtype | None = None,
    objectives: Objectives = (),
    *,
    decoder: bool = True,
    verify: bool = True,
) -> tuple[PlugConfig, Any, PlugVocabulary]:
    """(config, parameters, vocabulary) of a checkpoint; parameters sharded by `partitioner`.

    Includes the heads of `objectives`, and the decoder unless `decoder` is False. Without a
    partitioner they go to the first device. `dtype` is used for computation and for parameters in
    memory; by default parameters are float32, with the computation dtype of training. No process
    keeps more of them than its devices hold.
    `verify`: see `SavedModel.params`.

    Raises:
        PlugError: no checkpoint there, or one without a vocabulary or one of the heads.
    """
    saved = open_checkpoint(path)
    vocabulary = saved.vocabulary()
    config = saved.config if decoder else dataclasses.replace(saved.config, num_decoder_layers=0)
    boxed = abstract_params(PlugModel(config), objectives)
    if partitioner is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, nn.unbox(boxed))
    else:
        shardings = partitioner.param_shardings(boxed)
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    return config, saved.params(shardings, dtype or "float32", verify=verify), vocabulary


def vocabulary_fingerprint(vocabulary: PlugVocabulary) -> str:
    """SHA-256 of the pieces in id order, and of settings that are not the default.

    Vocabularies that give every text the same ids have the same fingerprint.
    """
    pieces = (vocabulary.id_to_piece(i) for i in range(vocabulary.vocab_size))
    settings = (f"{name}={value}" for name, value in vocabulary.settings.items())
    return hashlib.sha256("\n".join((*pieces, *settings)).encode()).hexdigest()


def lora_of(metadata: Mapping[str, Any]) -> Lora | None:
    """LoRA's settings from a checkpoint's metadata; None without LoRA."""
    return Lora(**metadata["lora"]) if "lora" in metadata else None
