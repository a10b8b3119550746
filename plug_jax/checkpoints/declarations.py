"""Sanity checks of a checkpoint's own declarations; the checkpoint may come from anyone.

Before orbax reads it, JSON must be neither huge nor deeply nested, and names must not be paths.
Before memory is allocated, arrays must fit into the files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

_TREE = "_METADATA"  # of an item: the names of its arrays
_SAYS = re.compile(
    rf"_CHECKPOINT_METADATA|(metadata/metadata)|(metrics/metrics)|[^/]+/({_TREE}|_sharding)"
    r"|[^/]+/array_metadatas/process_\d+"
)
_MOST_BYTES = 64 << 20  # per JSON file; a model of 1,000 unstacked layers needs 10 MB
_DEEPEST = 100  # depth of the tree
_MOST_LAYERS, _LARGEST = 10_000, 1 << 30  # for a model; limit of all other numbers in PlugConfig
# Per item: zstd's largest expansion of a byte, except for arrays of zeros.
_MOST_COMPRESSED = 1000
_FREE_BYTES = 1 << 24  # so small an item may hold anything


def describes_itself(name: str) -> bool:
    """Whether orbax reads the file of this name in a step as JSON."""
    return _SAYS.fullmatch(name) is not None


def find_false_declaration(path: epath.Path) -> str | None:
    """What is wrong with such a file, such as "is not JSON ...", or None."""
    if (size := path.stat().length) > _MOST_BYTES:
        return f"has {size:,} bytes, and at most {_MOST_BYTES:,} are allowed"
    try:
        said = json.loads(path.read_bytes())
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not JSON: {error}"
    if not isinstance(said, dict):
        return "is not a JSON object"
    return _false_tree(said) if path.name == _TREE else None


def find_false_model(config: Mapping[str, Any]) -> str | None:
    """An implausible field of a stored PlugConfig, or None."""
    for name, value in config.items():
        most = _MOST_LAYERS if name.endswith("_layers") else _LARGEST
        if isinstance(value, int) and value > most:
            return f"declares {name} = {value:,}"
    return None


def find_false_arrays(
    arrays: Iterable[tuple[str, tuple[int, ...], int, tuple[int, ...]]],
    stored: int,
    *,
    plausible: int = 0,
) -> str | None:
    """An array that an item declares but its files cannot hold, or None.

    Args:
        arrays: the name, shape, bytes per element and chunk shape of each.
        stored: the bytes of the item's files.
        plausible: bytes of arrays that any files may hold.
    """
    total = 0
    for name, shape, itemsize, chunk in arrays:
        total += math.prod(shape) * itemsize
        if len(chunk) != len(shape) or any(
            c > max(1, n) for c, n in zip(chunk, shape, strict=False)
        ):
            return f"declares {name} of shape {shape} in chunks of {chunk}"
    if total > max(_FREE_BYTES, _MOST_COMPRESSED * stored, plausible):
        return f"declares arrays of {total:,} bytes, and its files have {stored:,}"
    return None


def _false_tree(said: dict[str, Any]) -> str | None:
    """Array names become file names unless arrays are in a database, as ours always are."""
    if said.get("use_ocdbt") is not True:
        return "declares arrays in files of their own, which no checkpoint of plug-jax has"
    try:
        paths = [
            [key["key"] for key in entry["key_metadata"]]
            for entry in said["tree_metadata"].values()
        ]
    except (AttributeError, KeyError, TypeError):
        return "does not name its arrays"
    for path in paths:
        if len(path) > _DEEPEST:
            return f"names an array in {len(path):,} steps"
        for key in map(str, path):
            if key in ("", ".", "..") or re.search(r"[/\\\0]", key):
                return f"names an array {key!r}"
    return None
