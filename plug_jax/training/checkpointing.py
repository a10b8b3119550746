"""Checkpoints: MODEL_DIR/checkpoints/<step>/, written by orbax, each complete in itself.

A step holds the items `params` and `optimizer` (arrays), `data` (each process's place in its
data), `vocabulary` (the vocabulary's own file) and `metadata` (the PlugConfig), so generation,
evaluation and the next stage need nothing else. Orbax writes to a temporary name and renames at
the end: an interrupted save leaves no half checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import DTypeLike

from plug_jax.config import ComputeDtype, PlugConfig
from plug_jax.data.vocabularies import PlugVocabulary, load_vocabulary, save_vocabulary
from plug_jax.errors import PlugError
from plug_jax.models.plug import PlugModel
from plug_jax.partitioning import Partitioner
from plug_jax.training.checkpoint_format import (
    CHECKPOINTS,
    FilesRestore,
    FilesSave,
    open_manager,
)
from plug_jax.training.state import StateLayout, TrainState, abstract_params

# They change how the model is computed or trained, not what it is.
_FREE_FIELDS = frozenset(
    {
        "dropout_rate",
        "attention_dropout_rate",
        "init_std",
        "dtype",
        "scan_layers",
        "remat_policy",
        "remat_saved_names",
        "attention",
        "attention_block_size",
    }
)


class ResumableIterator(Protocol):
    """A data iterator whose place can be written to a directory and read back."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write this process's place."""

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Go to the place that `save` wrote."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often to save and how many to keep."""

    every: int  # steps; the last step is saved too
    keep: int | None = 3  # the newest ones; None: all

    def __post_init__(self) -> None:
        if self.every < 1 or (self.keep is not None and self.keep < 1):
            raise PlugError(
                f"CheckpointConfig: every and keep must be 1 or more, got {self.every}, {self.keep}"
            )


class Checkpoints:
    """The checkpoints of one run, written in the background while it goes on."""

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        config: CheckpointConfig,
        *,
        model: PlugConfig,
        vocabulary: PlugVocabulary,
    ) -> None:
        """Open (or make) MODEL_DIR/checkpoints."""
        self._model = model
        self._vocabulary = vocabulary
        self._fingerprint = vocabulary_fingerprint(vocabulary)
        self._manager = open_manager(
            epath.Path(model_dir) / CHECKPOINTS, max_to_keep=config.keep, create=True
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: ResumableIterator) -> None:
        """Start to save the state and the data's place; returns once the arrays are copied."""
        metadata = {
            "plug_config": self._model.to_dict(),
            "vocabulary_fingerprint": self._fingerprint,
        }
        step = int(state.step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "slots": state.opt_state}),
                data=FilesSave(data.save),
                vocabulary=FilesSave(self._save_vocabulary),
                metadata=ocp.args.JsonSave(metadata),
            ),
        )

    def restore(self, layout: StateLayout, data: ResumableIterator) -> TrainState:
        """The newest checkpoint's state, straight into its shardings; `data` goes to its place.

        Raises:
            PlugError: the checkpoint is of another model, vocabulary or optimizer.
        """
        step = self.latest_step()
        assert step is not None
        metadata = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        ).metadata
        where = f"{self._manager.directory / str(step)}"
        _check_same_model(where, metadata, self._model, self._fingerprint)
        target = layout.with_shardings()
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(target.params),
                    optimizer=ocp.args.StandardRestore(
                        {"step": target.step, "slots": target.opt_state}
                    ),
                ),
            )
        except (ValueError, KeyError) as error:
            raise PlugError(
                f"{where} does not fit this run's parameters or optimizer; continue with the "
                f"optimizer that it was trained with, or start a new MODEL_DIR with "
                f"INITIAL_CHECKPOINT. ({error})"
            ) from error
        self._manager.restore(step, args=ocp.args.Composite(data=FilesRestore(data.restore)))
        optimizer = restored.optimizer
        return TrainState(optimizer["step"], restored.params, optimizer["slots"])

    def close(self) -> None:
        """Wait for what is still being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _save_vocabulary(self, directory: epath.Path) -> None:
        if jax.process_index() == 0:
            save_vocabulary(self._vocabulary, directory)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A checkpoint opened for reading: what it is, before any array is read."""

    path: epath.Path  # .../checkpoints/<step>
    config: PlugConfig  # with attention "dot": any device and any row length will do to infer
    vocabulary_fingerprint: str | None  # None: converted from weights without a vocabulary
    converted_from: Mapping[str, Any] | None = None  # what `plug-jax convert` says of its input

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
        """The stored parameter tree, as ShapeDtypeStructs."""
        tree = open_manager(self.path.parent).item_metadata(self.step)["params"]
        return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), dict(tree))

    def params(self, shardings: Any, dtype: DTypeLike | None = None) -> Any:
        """The parameters, read straight into a tree of shardings like theirs.

        Each process reads what its devices hold, and no more. `dtype` None keeps the stored one of
        each array: float32 in training, any in a converted checkpoint.
        """
        target = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, dtype or a.dtype, sharding=s),
            self.param_shapes(),
            shardings,
        )
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return open_manager(self.path.parent).restore(self.step, args=args).params


def open_checkpoint(path: str | os.PathLike[str]) -> SavedModel:
    """Open a MODEL_DIR (its newest checkpoint), or one step of it, MODEL_DIR/checkpoints/<step>.

    Raises:
        PlugError: there is no complete checkpoint at that path.
    """
    root = epath.Path(path).expanduser().resolve()
    if root.name.isdigit() and (root / "metadata").exists():
        root, step = root.parent, int(root.name)
    else:
        root = root / CHECKPOINTS if (root / CHECKPOINTS).exists() else root
        latest = open_manager(root).latest_step() if root.exists() else None
        if latest is None:
            raise PlugError(
                f"no checkpoint in {os.fspath(path)}: give a MODEL_DIR that `plug-jax train` or "
                "`plug-jax convert` wrote, or MODEL_DIR/checkpoints/<step>"
            )
        step = latest
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    metadata = open_manager(root).restore(step, args=args).metadata
    return SavedModel(
        root / str(step),
        PlugConfig.from_dict({**metadata["plug_config"], "attention": "dot"}),
        metadata["vocabulary_fingerprint"],
        metadata.get("converted_from"),
    )


def vocabulary_path(checkpoint: str | os.PathLike[str]) -> str:
    """Where a checkpoint keeps its vocabulary, for `load_vocabulary`."""
    return open_checkpoint(checkpoint).vocabulary_path


def load_for_inference(
    path: str | os.PathLike[str],
    partitioner: Partitioner | None = None,
    dtype: ComputeDtype | None = None,
) -> tuple[PlugConfig, Any, PlugVocabulary]:
    """(config, parameters, vocabulary) of a checkpoint; parameters sharded by `partitioner`.

    Without one they go to the first device alone. `dtype` is that of the computation and of the
    parameters in memory; by default the parameters are float32 and computed with as in training.
    No process reads more of them than its devices hold.

    Raises:
        PlugError: no checkpoint there, or one without a vocabulary.
    """
    saved = open_checkpoint(path)
    vocabulary = saved.vocabulary()
    boxed = abstract_params(PlugModel(saved.config))
    if partitioner is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, nn.unbox(boxed))
    else:
        shardings = partitioner.param_shardings(boxed)
    config = dataclasses.replace(saved.config, dtype=dtype or saved.config.dtype)
    return config, saved.params(shardings, dtype or "float32"), vocabulary


def initialize_from(
    path: str | os.PathLike[str],
    state: TrainState,
    layout: StateLayout,
    *,
    vocabulary: PlugVocabulary,
) -> TrainState:
    """Stage 1 -> stage 2: `state` with every parameter of the checkpoint at `path` taken over.

    The checkpoint is one of a run, or converted; its arrays become float32. A model without decoder
    gives its encoder, embeddings and heads to one with a decoder, which keeps its fresh values;
    otherwise the trees must be the same. Optimizer and step start anew.

    Raises:
        PlugError: any leaf that is missing, superfluous or of another shape; another vocabulary.
    """
    saved = open_checkpoint(path)
    needed = saved.vocabulary_path
    if saved.vocabulary_fingerprint != vocabulary_fingerprint(vocabulary):
        raise PlugError(
            f"INITIAL_CHECKPOINT {saved.path} was trained with another vocabulary than this run's "
            f"task; the one it needs is {needed}"
        )
    source, target = _by_path(saved.param_shapes()), _by_path(layout.abstract.params)
    fresh = () if saved.config.num_decoder_layers else ("decoder/",)
    problems = [
        f"{name}: {source[name]} there, {target.get(name, 'absent')} here"
        for name in source
        if target.get(name) != source[name]
    ] + [
        f"{name}: absent there, {target[name]} here"
        for name in target
        if name not in source and not name.startswith(fresh or ("\0",))
    ]
    if problems:
        raise PlugError(
            f"INITIAL_CHECKPOINT {saved.path} does not fit this model:\n  " + "\n  ".join(problems)
        )
    shardings = {
        name: layout.shardings.params[name] for name in layout.shardings.params if name != "decoder"
    }
    if saved.config.num_decoder_layers:
        shardings = layout.shardings.params
    return dataclasses.replace(state, params={**state.params, **saved.params(shardings, "float32")})


def vocabulary_fingerprint(vocabulary: PlugVocabulary) -> str:
    """SHA-256 over the pieces in order of their ids: equal for vocabularies that agree."""
    pieces = "\n".join(vocabulary.id_to_piece(i) for i in range(vocabulary.vocab_size))
    return hashlib.sha256(pieces.encode()).hexdigest()


def _check_same_model(
    where: str, metadata: Mapping[str, Any], model: PlugConfig, fingerprint: str
) -> None:
    there, here = metadata["plug_config"], model.to_dict()
    differences = [
        f"{name} is {there.get(name)!r} there and {here[name]!r} here"
        for name in here
        if name not in _FREE_FIELDS and there.get(name) != here[name]
    ]
    if metadata["vocabulary_fingerprint"] != fingerprint:
        differences.append("the vocabulary is another one")
    if differences:
        raise PlugError(
            f"{where} is a checkpoint of another model: {'; '.join(differences)}. Continue with "
            "the configuration in MODEL_DIR/config.gin, or choose a new MODEL_DIR."
        )


def _by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
