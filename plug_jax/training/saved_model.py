"""A checkpoint opened for reading: by inference, evaluation, conversion and the next stage."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary, load_vocabulary
from plug_jax.errors import PlugError
from plug_jax.field_types import typed
from plug_jax.models.plug import PlugModel
from plug_jax.objectives.composition import Objectives
from plug_jax.partitioning import Partitioner
from plug_jax.techniques.lora import LORA, Lora
from plug_jax.training.checkpoint_format import CHECKPOINTS, PlainPath
from plug_jax.training.checkpoint_reading import (
    best_step,
    read_metadata,
    restore_part,
    stored_arrays,
)
from plug_jax.training.integrity import (
    Damage,
    DamagedCheckpointError,
    find_damage,
    find_damage_together,
)
from plug_jax.training.state import HEADS, abstract_params, with_shardings


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A checkpoint opened for reading: what it is, before any array is read."""

    path: epath.Path  # .../checkpoints/<step>
    config: PlugConfig  # with attention "dot": any device and any row length will do to infer
    vocabulary_fingerprint: str | None  # None: converted from weights without a vocabulary
    converted_from: Mapping[str, Any] | None = None  # what `plug-jax convert` says of its input
    # What it was fine-tuned for, as `plug_jax.downstream.kinds` reads it; None: it was not.
    task: Mapping[str, Any] | None = None
    lora: Lora | None = None  # stored beside the model; what is read has it merged

    @property
    def step(self) -> int:
        """The training step it was saved at."""
        return int(self.path.name)

    @property
    def vocabulary_path(self) -> str:
        """Where its vocabulary is, for `load_vocabulary`. PlugError when it has none."""
        if self.vocabulary_fingerprint is None:
            raise PlugError(
                f"{self.path} was converted without a vocabulary, which this needs; run `plug-jax "
                "convert` again with --vocabulary vocab.txt, the file that goes with the weights"
            )
        return os.fspath(self.path / "vocabulary")

    def vocabulary(self) -> PlugVocabulary:
        """The vocabulary that the model was trained with. PlugError when it has none."""
        return load_vocabulary(self.vocabulary_path)

    def param_shapes(self) -> Any:
        """The parameter tree as it is read, of ShapeDtypeStructs."""
        return {name: part for name, part in self._stored_shapes().items() if name != LORA}

    def check(self, *items: str) -> None:
        """Read every byte of some items, such as "params", each process its part of the files.

        Raises:
            DamagedCheckpointError: one of them is not what was written; on every process.
        """
        if damage := find_damage_together(self.path, items):
            raise DamagedCheckpointError.at(self.path, damage)

    def _stored_shapes(self) -> dict[str, Any]:
        return dict(stored_arrays(self.path, "params"))

    def params(self, shardings: Any, dtype: DTypeLike | None = None, *, verify: bool = True) -> Any:
        """The parameters, read straight into a tree of shardings like theirs.

        A decoder, and heads of objectives, that the shardings leave out are not read. Each process
        reads what its devices hold, and no more. `dtype` None keeps the stored one of each array:
        float32 in training, any in a converted checkpoint. All processes have to call it.

        Args:
            shardings: of the parameters wanted.
            dtype: of all arrays.
            verify: compare what is read with its checksums first.

        Raises:
            PlugError: heads that are not stored.
            DamagedCheckpointError: it is not what was written, or not of the model that it is of.
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
        """The parameters `target`, LoRA's products added before they get their dtype."""
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


def open_checkpoint(path: str | os.PathLike[str]) -> SavedModel:
    """Open a MODEL_DIR, or one step of it, MODEL_DIR/checkpoints/<step>.

    Of a MODEL_DIR it is the best checkpoint, if the run keeps that, else the newest.

    What is small is compared with its checksums; the arrays are when they are read.

    Raises:
        PlugError: there is no complete checkpoint at that path.
        DamagedCheckpointError: there is one, and it is not what was written.
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
                "`plug-jax convert` wrote, or MODEL_DIR/checkpoints/<step>"
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
    """Where a checkpoint keeps its vocabulary, for `load_vocabulary`."""
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

    With the heads of `objectives`; without a decoder if `decoder` is False. Without a partitioner
    they go to the first device alone. `dtype` is that of the computation and of the parameters in
    memory; by default the parameters are float32 and computed with as in training. No process keeps
    more of them than its devices hold.
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
    """SHA-256 over the pieces in order of their ids, and settings that are not the default.

    Equal for vocabularies that give a text the same ids.
    """
    pieces = (vocabulary.id_to_piece(i) for i in range(vocabulary.vocab_size))
    settings = (f"{name}={value}" for name, value in vocabulary.settings.items())
    return hashlib.sha256("\n".join((*pieces, *settings)).encode()).hexdigest()


def lora_of(metadata: Mapping[str, Any]) -> Lora | None:
    """What a checkpoint's metadata say of LoRA; None without it."""
    return Lora(**metadata["lora"]) if "lora" in metadata else None
