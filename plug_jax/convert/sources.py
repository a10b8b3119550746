"""PyTorch checkpoints on disk: their headers, under the files' names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plug_jax.convert.name_map import BERT, LAYOUTS, PLUG, Layout
from plug_jax.convert.shards import read_state_dict
from plug_jax.convert.tensor_files import Tensor, read_torch_file
from plug_jax.data.fetched_files import read_file, read_json
from plug_jax.errors import PlugError

_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_TRACKERS = ("latest", "latest_checkpointed_iteration.txt")  # DeepSpeed's, and the released code's
_BERTS = ("bert", "sbert", "structbert")
_BERT_CLASS = re.compile(r"(S|Struct)?Bert(For\w+|Model|LMHeadModel)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint with only its headers read."""

    path: Path
    layout: Layout
    ranks: Sequence[Mapping[str, Tensor]]  # by file names; after `by_layout`, by the layout's
    config: Mapping[str, Any]  # its config.json; empty without one
    around: Sequence[Path]  # directories to search for small files, such as a vocabulary
    left_out: Sequence[str] = ()  # names left out on request


def open_plug(directory: Path) -> Source:
    """A checkpoint in the released layout: the tag's directory, or its parent.

    Raises:
        PlugError: there is none, or several and no file says which; a rank is missing; a file is
            incomplete.
    """
    tag = _tag_directory(directory)
    files = _rank_files(tag)
    ranks = [_module(path) for path in files]
    around = (tag, tag.parent)
    config = _config_json(around)
    kind = config.get("model_type") or "plug"
    if not str(kind).lower().startswith("plug"):
        raise PlugError(f"config.json of {tag} is of a model of type {kind!r}, not of PLUG")
    return Source(tag, PLUG, ranks, config, around)


def open_hf(directory: Path) -> Source:
    """A Hugging Face directory: the BERT family, or a whole PLUG written by `export-hf`.

    Raises:
        PlugError: not such a directory; a model that is not a BERT; two tensors of one name; a file
            is incomplete.
    """
    if not directory.is_dir():
        raise PlugError(f"{directory} is not a directory; name the one that holds the weights")
    config = _config_json((directory,))
    kind = config.get("model_type") or "bert"
    if kind not in (*_BERTS, "plug"):
        raise PlugError(
            f"{directory} is a model of type {kind!r}; only BERT's architecture is read (bert, "
            "sbert, structbert; RoBERTa-wwm is one), and plug, which export-hf writes"
        )
    layout = LAYOUTS["plug" if kind == "plug" else "bert"]
    for architecture in config.get("architectures") or ():
        if layout is BERT and not _BERT_CLASS.fullmatch(str(architecture)):
            raise PlugError(
                f"config.json of {directory} names the architecture {architecture}, and only "
                "BERT's is read; if it is one under another name, write BertForPreTraining there"
            )
    return Source(directory, layout, [read_state_dict(directory)], config, (directory,))


def _tag_directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise PlugError(
            f"{directory} is not a directory; name the one of mp_rank_00_model_states.pt"
        )
    if any(_RANK.fullmatch(path.name) for path in directory.iterdir()):
        return directory
    if tracker := next((directory / t for t in _TRACKERS if (directory / t).is_file()), None):
        name = read_file(tracker).decode("utf-8", "replace").strip()
        if not name or not (directory / name).is_dir():
            raise PlugError(f"{tracker} names {name!r}, which is not a directory in {directory}")
        return directory / name
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
        raise PlugError(f"{path} has no 'module', the state dict; it has {some(sorted(content))}")
    found = len(list(path.parent.glob("mp_rank_*_model_states.pt")))
    size = content.get("mp_world_size", found)
    if size != found:
        raise PlugError(
            f"{path.parent} holds {found} ranks, and {path.name} says that there are {size}: "
            f"mp_rank_00_model_states.pt to mp_rank_{size - 1:02d}_model_states.pt"
        )
    if alien := [name for name, value in module.items() if not isinstance(value, Tensor)]:
        raise PlugError(f"{path}: not a tensor: {some(alien)}")
    return dict(module)


def _config_json(directories: Sequence[Path]) -> dict[str, Any]:
    path = _first_file(directories, "config.json")
    return {} if path is None else read_json(path)


def _first_file(directories: Sequence[Path], name: str) -> Path | None:
    return next((d / name for d in directories if (d / name).is_file()), None)


def some(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
