"""Export of checkpoints to PyTorch, with one layer in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.checkpoints.integrity import reading
from plug_jax.checkpoints.parameters import HEADS
from plug_jax.checkpoints.saved_model import SavedModel, open_checkpoint
from plug_jax.config import PlugConfig
from plug_jax.convert.arrange import DTYPES, cast, check_ranks, disassemble
from plug_jax.convert.name_map import BERT, PLUG, Layout, Leaf, leaves_of
from plug_jax.convert.progress import atomic_output, progress_bar
from plug_jax.convert.stored_arrays import StoredTree
from plug_jax.convert.tensor_files import (
    Shapes,
    TensorFileWriter,
    create_safetensors,
    create_torch_file,
)
from plug_jax.data.vocabularies.vocabulary import WordPieceVocabulary, save_vocabulary
from plug_jax.downstream.kinds import described_format
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.task_heads import TaskObjective

_SHARD_BYTES = 5 * 10**9  # per safetensors file; a larger model has several
_TRACKERS = ("latest", "latest_checkpointed_iteration.txt")  # DeepSpeed's, and the released code's


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of an export."""

    kind: str  # a description
    tensors: int
    bytes: int


def export_plug(
    checkpoint: str | os.PathLike[str],
    output: Path,
    *,
    ranks: int | None = None,
    tag: str = "1",
    dtype: str | None = None,
    objectives: Objectives = (),
) -> Exported:
    """Write output/<tag>/mp_rank_XX_model_states.pt, config.json and the vocabulary, if any.

    Args:
        checkpoint: a MODEL_DIR, or one step of it.
        output: a directory, which appears when it is complete.
        ranks: model-parallel ranks; by default those of the import, else one.
        tag: the checkpoint's directory; the released code takes whole numbers only.
        dtype: of all tensors; by default each as it was imported, else as it is stored.
        objectives: those whose own heads are written too, besides that of fine-tuning.

    Raises:
        PlugError: a post-norm model, or heads that do not divide the hidden size, which this layout
            lacks; ranks that do not divide the model.
    """
    saved = open_checkpoint(checkpoint)
    if saved.config.norm_placement != "pre":
        raise PlugError("the released layout is of pre-norm models; use export-hf for this one")
    if not tag.isalnum():
        raise PlugError(f"--tag {tag}: letters and digits only")
    if ranks is None:
        ranks = (saved.converted_from or {}).get("ranks", 1)
    if ranks < 1:
        raise PlugError(f"--ranks must be at least 1, not {ranks}")
    job = _Export(saved, PLUG, objectives, ranks=ranks, dtype=dtype)
    with atomic_output(output, reads=[checkpoint]) as partial:
        (partial / tag).mkdir(parents=True)
        writers = [
            create_torch_file(
                partial / tag / f"mp_rank_{rank:02d}_model_states.pt",
                job.shapes,
                tied=PLUG.tied,
                wrap=lambda module: _deepspeed(module, ranks, saved.step),
            )
            for rank in range(ranks)
        ]
        size = job.write(lambda name, rank: writers[rank])
        for writer in writers:
            writer.close()
        for tracker in _TRACKERS:
            (partial / tracker).write_text(tag, "utf-8")
        job.write_config(partial)
    return Exported(f"PLUG over {ranks} ranks", len(job.shapes), size)


def export_hf(
    checkpoint: str | os.PathLike[str],
    output: Path,
    *,
    dtype: str | None = None,
    objectives: Objectives = (),
    shard_bytes: int = _SHARD_BYTES,
) -> Exported:
    """Write a directory of safetensors and config.json, and the vocabulary if there is one.

    A post-norm encoder with its pooler becomes a BertForPreTraining for transformers, or with its
    fine-tuned head a BertForSequenceClassification or similar; any other model is written under the
    released PLUG's single-rank names.

    Args:
        checkpoint: a MODEL_DIR, or one step of it.
        output: a directory, which appears when it is complete.
        dtype: of all tensors; by default each as it was imported, else as it is stored.
        objectives: those whose own heads are written too, besides that of fine-tuning.
        shard_bytes: maximum per file (unless a single tensor is larger).

    Raises:
        PlugError: `output` exists, a value is too large for `dtype`, or the layout has no heads of
            this size.
    """
    saved = open_checkpoint(checkpoint)
    config = saved.config
    head = _head_of(saved)
    is_bert = (
        config.norm_placement == "post"
        and (config.use_pooler or head is not None)
        and not config.num_decoder_layers
    )
    job = _Export(saved, BERT if is_bert else PLUG, objectives, ranks=1, dtype=dtype)
    with atomic_output(output, reads=[checkpoint]) as partial:
        partial.mkdir()
        writers = _sharded(partial, job.shapes, shard_bytes)
        size = job.write(lambda name, rank: writers[name])
        for writer in set(writers.values()):
            writer.close()
        job.write_config(partial)
    if is_bert and head is None and config.num_sentence_classes != 2:
        print(
            f"its sentence head has {config.num_sentence_classes} classes, transformers' "
            "BertForPreTraining 2: load it with BertForMaskedLM or BertModel",
            file=sys.stderr,
        )
    kind = "a BERT that transformers loads" if is_bert else "PLUG's names, one rank"
    return Exported(kind, len(job.shapes), size)


class _Export:
    def __init__(
        self,
        saved: SavedModel,
        layout: Layout,
        objectives: Objectives,
        *,
        ranks: int,
        dtype: str | None,
    ) -> None:
        if not saved.config.num_encoder_layers:
            raise PlugError(
                f"{saved.path} is a decoder alone, a baseline to compare PLUG with, and neither "
                "PLUG nor transformers' BERT has names for its tensors"
            )
        heads, size = saved.config.num_heads, saved.config.head_dim
        if heads * size != saved.config.hidden_size:
            raise PlugError(
                f"{saved.path} has {heads} heads of size {size} and a hidden size of "
                f"{saved.config.hidden_size}; PLUG and transformers' BERT divide the hidden size "
                "by the heads, so no such file could hold it"
            )
        self._saved, self._layout, self._ranks = saved, layout, ranks
        config, source = saved.config, saved.converted_from or {}
        all_rows = config.vocab_size if layout is BERT else config.padded_vocab_size
        self._rows = source.get("vocab_rows", all_rows)
        saved.check("params", "unused")
        self._trees = {True: StoredTree(saved.path / "params")}
        if (saved.path / "unused").exists():
            self._trees[False] = StoredTree(saved.path / "unused")
        self._head = _head_of(saved)
        if self._head is not None:
            objectives = (self._head, *objectives)
        leaves = leaves_of(config, layout, objectives)
        left_out = set(saved.param_shapes().get(HEADS, ())) - {one.name for one in objectives}
        if left_out:
            print(
                f"left out: the heads of {', '.join(sorted(left_out))}; --objective names what "
                "they belong to",
                file=sys.stderr,
            )
        check_ranks(leaves, ranks, rows=self._rows)
        self._dtypes = {} if dtype else dict(source.get("dtypes", {}))
        self._leaves = [(leaf, self._stored_dtype(leaf, dtype)) for leaf in leaves]
        #: Shapes of each tensor on one rank, by name.
        self.shapes: Shapes = {
            name: (leaf.torch_shape(ranks=ranks, rows=self._rows), self._dtype(name, stored))
            for leaf, stored in self._leaves
            for i in leaf.layers
            for name in leaf.names(i)
        }

    def _stored_dtype(self, leaf: Leaf, dtype: str | None) -> np.dtype:
        if dtype is not None:
            return DTYPES[dtype]
        if leaf.used not in self._trees:
            return DTYPES["float32"]
        return DTYPES[self._trees[leaf.used].open(leaf.path).dtype.name]

    def _dtype(self, name: str, stored: np.dtype) -> np.dtype:
        return DTYPES[self._dtypes[name]] if name in self._dtypes else stored

    def write(self, writer_of: Callable[[str, int], TensorFileWriter]) -> int:
        """Write every tensor to its file; returns the number of bytes."""
        total = sum(math.prod(s) * d.itemsize for s, d in self.shapes.values()) * self._ranks
        with progress_bar("exporting", total) as advance:
            for leaf, _ in self._leaves:
                if leaf.used not in self._trees:
                    print(
                        f"{leaf.path}: PLUG has it and does not use it, this model has none: zeros",
                        file=sys.stderr,
                    )
                for layer in leaf.layers:
                    advance(self._write_layer(leaf, layer, writer_of))
        return total

    def _write_layer(
        self, leaf: Leaf, layer: int, writer_of: Callable[[str, int], TensorFileWriter]
    ) -> int:
        array = self._read_layer(leaf, layer)
        parts = disassemble(leaf, array, ranks=self._ranks, rows=self._rows)
        written = 0
        for name, pieces in zip(leaf.names(layer), parts, strict=True):
            for rank, piece in enumerate(pieces):
                tensor = cast(piece, self.shapes[name][1], name)
                writer_of(name, rank).put(name, tensor)
                written += tensor.nbytes
        return written

    def _read_layer(self, leaf: Leaf, layer: int) -> np.ndarray:
        if leaf.used not in self._trees:
            return np.zeros(leaf.layer_shape, np.float32)

        def read(path: str) -> np.ndarray:
            with reading(self._saved.path, "params" if leaf.used else "unused"):
                store = self._trees[leaf.used].open(path)
                part = store[layer] if leaf.stacked else store
                return np.asarray(part.read().result())

        lora, array = self._saved.lora, read(leaf.path)
        return array if lora is None else np.asarray(lora.merged(leaf.path, array, read))

    def write_config(self, directory: Path) -> None:
        """config.json, with the head's class and labels, and the vocabulary."""
        describe = _bert_config if self._layout is BERT else _plug_config
        fields = describe(self._saved.config, self._rows)
        if self._head is not None and self._layout is BERT:
            fields |= _head_config(self._head)
        text = json.dumps(fields, indent=2, ensure_ascii=False)
        (directory / "config.json").write_text(text + "\n", "utf-8")
        if self._saved.vocabulary_fingerprint is not None:
            vocabulary = self._saved.vocabulary()
            save_vocabulary(vocabulary, directory)
            if not isinstance(vocabulary, WordPieceVocabulary):
                print(
                    f"the vocabulary is {vocabulary.FILE_NAME}: import-hf and import-plug read it, "
                    "BERT's tokenizers do not",
                    file=sys.stderr,
                )


def _sharded(directory: Path, shapes: Shapes, shard_bytes: int) -> Mapping[str, TensorFileWriter]:
    """A writer for each name: model.safetensors, or its shards with their index."""
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    if len(shards) == 1:
        return dict.fromkeys(shapes, create_safetensors(directory / "model.safetensors", shapes))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    writers: dict[str, TensorFileWriter] = {}
    for file, shard in zip(names, shards, strict=True):
        writers |= dict.fromkeys(shard, create_safetensors(directory / file, shard))
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return writers


def _deepspeed(module: Mapping[str, Any], ranks: int, step: int) -> dict[str, Any]:
    """What DeepSpeed saves in addition to a state dict, without optimizer."""
    return {
        "module": dict(module),
        "optimizer": None,
        "lr_scheduler": None,
        "csr_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": 0,
        "dp_world_size": 1,
        "mp_world_size": ranks,
        "iteration": step,
    }


def _bert_config(config: PlugConfig, rows: int) -> dict[str, Any]:
    """config.json of a BertForPreTraining."""
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "vocab_size": rows,
        "num_hidden_layers": config.num_encoder_layers,
        "layer_norm_eps": config.layer_norm_epsilon,
        **_sizes(config),
    }


def _head_of(saved: SavedModel) -> TaskObjective | None:
    """The objective of a checkpoint's fine-tuned head, if any."""
    return None if saved.task is None else described_format(saved.task).make_objective()


def _head_config(head: TaskObjective) -> dict[str, Any]:
    """A head's settings in config.json."""
    numbers = dict(enumerate(head.torch_labels))
    labels = {"id2label": numbers, "label2id": {name: i for i, name in numbers.items()}}
    return {
        "architectures": [head.torch_class],
        "classifier_dropout": head.dropout_rate,
        **(labels if numbers else {}),
    }


def _plug_config(config: PlugConfig, rows: int) -> dict[str, Any]:
    """config.json for the released layout; import reads heads, layers and vocabulary from it."""
    return {
        "model_type": "plug",
        "vocab_size": config.vocab_size,
        "padded_vocab_size": rows,
        "num_encoder_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "layernorm_epsilon": config.layer_norm_epsilon,
        "encoder_final_norm_repeats": config.encoder_final_norm_repeats,
        "pre_ln": config.norm_placement == "pre",
        "use_pooler": config.use_pooler,
        **_sizes(config),
    }


def _sizes(config: PlugConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_dim,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "initializer_range": config.init_std,
        "pad_token_id": 0,
    }
