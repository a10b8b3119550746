"""Checkpoints of PyTorch found on disk, their names brought to those of a layout's table."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plug_jax.convert.name_map import BERT, LAYOUTS, PLUG, Layout
from plug_jax.convert.tensor_files import Tensor, read_torch_file, state_dict_files, tensors_in
from plug_jax.errors import PlugError

_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_TRACKERS = ("latest", "latest_checkpointed_iteration.txt")  # DeepSpeed's, and the released code's
_CORE = ("embeddings.", "encoder.", "pooler.")
_BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint whose headers were read, and nothing else."""

    path: Path
    layout: Layout
    ranks: Sequence[Mapping[str, Tensor]]  # by name, each name as in the layout
    config: Mapping[str, Any]  # of its config.json; empty where there is none
    vocabulary: Path | None  # a vocab.txt beside it


def open_plug(directory: Path) -> Source:
    """A checkpoint in the released layout: the tag's directory, or its parent.

    Raises:
        PlugError: there is none, or several and no file says which; a rank is missing; the ranks do
            not hold the same tensors; a tensor that must equal another does not.
    """
    tag = _tag_directory(directory)
    files = _rank_files(tag)
    ranks = [_module(path) for path in files]
    for path, rank in zip(files, ranks, strict=True):
        if difference := sorted(rank.keys() ^ ranks[0].keys()):
            raise PlugError(f"{path.name} and {files[0].name} differ in {_some(difference)}")
    around = (tag, tag.parent)
    return Source(
        tag,
        PLUG,
        [_without_tied(PLUG, rank) for rank in ranks],
        _config_json(around),
        _first_file(around, "vocab.txt"),
    )


def open_hf(directory: Path) -> Source:
    """A Hugging Face directory: BERT and its kin, or what `export-hf` writes of a whole PLUG.

    Names may carry prefixes (module., bert. or none) and TensorFlow's gamma and beta.

    Raises:
        PlugError: not such a directory; a model that is no BERT; two tensors of one name; a tensor
            that must equal another and does not.
    """
    if not directory.is_dir():
        raise PlugError(f"{directory} is no directory; name the one that holds the weights")
    config = _config_json((directory,))
    kind = config.get("model_type", "bert")
    if kind not in ("bert", "sbert", "structbert", "plug"):
        raise PlugError(
            f"{directory} is a model of type {kind!r}; only BERT's architecture is read (bert, "
            "sbert, structbert; RoBERTa-wwm is one), and plug, which export-hf writes"
        )
    layout = LAYOUTS["plug" if kind == "plug" else "bert"]
    found: dict[str, Tensor] = {}
    for path in state_dict_files(directory):
        for name, tensor in tensors_in(path):
            if name in found:
                raise PlugError(f"{path.name} holds {name}, and so does another shard")
            found[name] = tensor
    if layout is BERT:
        found = _without_buffers(_bert_names(directory, found))
    vocabulary = _first_file((directory,), "vocab.txt")
    return Source(directory, layout, [_without_tied(layout, found)], config, vocabulary)


def _tag_directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise PlugError(f"{directory} is no directory; name the one of mp_rank_00_model_states.pt")
    if any(_RANK.fullmatch(path.name) for path in directory.iterdir()):
        return directory
    if tracker := next((directory / t for t in _TRACKERS if (directory / t).is_file()), None):
        tag = directory / tracker.read_text("utf-8").strip()
        if not tag.is_dir():
            raise PlugError(f"{tracker} names {tag.name}, which is not in {directory}")
        return tag
    tags = sorted({path.parent for path in directory.glob("*/mp_rank_*_model_states.pt")})
    if len(tags) != 1:
        names = ", ".join(tag.name for tag in tags)
        raise PlugError(
            f"{directory} holds {f'several checkpoints: {names}' if tags else 'no checkpoint'}; "
            "name the directory that holds mp_rank_00_model_states.pt itself"
        )
    return tags[0]


def _rank_files(tag: Path) -> list[Path]:
    ranks = {int(m[1]): p for p in sorted(tag.iterdir()) if (m := _RANK.fullmatch(p.name))}
    if not ranks:
        raise PlugError(f"{tag} holds no mp_rank_00_model_states.pt")
    missing = [f"mp_rank_{r:02d}_model_states.pt" for r in range(max(ranks)) if r not in ranks]
    if missing:
        raise PlugError(f"{tag} lacks {', '.join(missing)}; every rank holds a part of the model")
    return [ranks[r] for r in sorted(ranks)]


def _module(path: Path) -> dict[str, Tensor]:
    content = read_torch_file(path)
    module = content.get("module")
    if not isinstance(module, Mapping):
        raise PlugError(f"{path} has no 'module', the state dict; it has {_some(sorted(content))}")
    found = len(list(path.parent.glob("mp_rank_*_model_states.pt")))
    size = content.get("mp_world_size", found)
    if size != found:
        raise PlugError(
            f"{path.parent} holds {found} ranks, and {path.name} says that there are {size}: "
            f"mp_rank_00_model_states.pt to mp_rank_{size - 1:02d}_model_states.pt"
        )
    if alien := [name for name, value in module.items() if not isinstance(value, Tensor)]:
        raise PlugError(f"{path}: not a tensor: {_some(alien)}")
    return dict(module)


def _without_tied(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the second names, each of which must be of the same bits as its first."""
    left = dict(tensors)
    for alias, name in layout.tied.items():
        twin = left.pop(alias, None)
        if twin is None or name not in left or twin.where == left[name].where:
            continue
        one, other = twin.read(), left[name].read()
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            raise PlugError(
                f"{alias} differs from {name} ({twin.where}); this model has one array for both"
            )
    return left


def _bert_names(directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names that BertForPreTraining gives them."""
    words = "embeddings.word_embeddings.weight"
    prefixes = [name.removesuffix(words) for name in tensors if name.endswith(words)]
    if len(prefixes) != 1 or prefixes[0].endswith("roberta."):
        raise PlugError(
            f"{directory} is no BERT: it has {len(prefixes)} tensors named *{words}"
            + (" and is a RoBERTa, whose positions are others" if len(prefixes) == 1 else "")
        )
    (prefix,) = prefixes
    outer = prefix.removesuffix("bert.")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix)
        core = name.startswith(prefix) and inner.startswith(_CORE)
        new = f"bert.{inner}" if core else name.removeprefix(outer)
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", new)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        if new in renamed:
            raise PlugError(f"{directory} holds {new} twice, under different names")
        renamed[new] = tensor
    return renamed


def _without_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the buffers that old releases save: they hold 0, 1, 2, ... and zeros."""
    left = dict(tensors)
    for name in _BUFFERS:
        if name in left:
            values = left.pop(name).read().reshape(-1)
            if not np.array_equal(values, np.arange(values.size) * name.endswith("position_ids")):
                raise PlugError(f"{name} holds other values than BERT's")
    return left


def _config_json(directories: Sequence[Path]) -> dict[str, Any]:
    path = _first_file(directories, "config.json")
    if path is None:
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise PlugError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise PlugError(f"{path} is no JSON object")
    return config


def _first_file(directories: Sequence[Path], name: str) -> Path | None:
    return next((d / name for d in directories if (d / name).is_file()), None)


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
