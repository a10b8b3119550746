"""The state dict of a Hugging Face directory, in one file or in shards with their index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from plug_jax.convert.tensor_files import Tensor, read_safetensors, read_torch_file
from plug_jax.data.fetched_files import read_json
from plug_jax.errors import PlugError

_FILES = ("model.safetensors", "pytorch_model.bin")


def read_state_dict(directory: Path) -> dict[str, Tensor]:
    """Every tensor in the files of a directory, by its name there.

    Raises:
        PlugError: no such file; an invalid index, or one that disagrees with its shards; an
            incomplete file; two tensors of one name; a value that is not a tensor.
    """
    for name in _FILES:
        # A dangling link counts: whoever made it meant that file.
        if os.path.lexists(directory / name):
            return dict(_tensors_in(directory / name))
        if os.path.lexists(index := directory / f"{name}.index.json"):
            return _read_shards(index)
    found = sorted(path.name for path in directory.iterdir())
    if shard := next(
        (n for n in found if n.endswith((".safetensors", ".bin")) and "-of-" in n), ""
    ):
        raise PlugError(f"{directory} holds {shard}, a shard, and no index of them; fetch that too")
    raise PlugError(
        f"{directory} holds neither {' nor '.join(_FILES)}, nor shards of them with their index; "
        f"it holds {', '.join(found[:10]) or 'nothing'}"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = _weight_map(index)
    shards = sorted(set(places.values()))
    if missing := [shard for shard in shards if not os.path.lexists(index.parent / shard)]:
        raise PlugError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names")
    found: dict[str, Tensor] = {}
    for shard in shards:
        there = dict(_tensors_in(index.parent / shard))
        if absent := [name for name, of in places.items() if of == shard and name not in there]:
            raise PlugError(
                f"{index.parent / shard} lacks {absent[0]}, which {index.name} places there: they "
                "do not belong to one model; fetch both again"
            )
        if twice := sorted(there.keys() & found.keys()):
            raise PlugError(f"{shard} holds {twice[0]}, and so does another shard")
        found |= there
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_name, places.values())):
        raise PlugError(
            f"{index} is not an index of shards: it has no weight_map from tensors to names of "
            "files beside it; fetch it again"
        )
    return places


def _is_name(shard: object) -> bool:
    return isinstance(shard, str) and shard not in ("", ".", "..") and "/" not in shard


def _tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    read = read_safetensors if path.suffix == ".safetensors" else read_torch_file
    for name, value in read(path).items():
        if not isinstance(value, Tensor):
            raise PlugError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
        yield name, value
