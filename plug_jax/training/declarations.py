"""What a checkpoint says of itself, believed within bounds only: it may be anybody's.

Checked before orbax reads it: JSON that is neither huge nor deep, and names that stay names; and
before memory is taken: arrays that the files can hold.
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
_MOST_BYTES = 64 << 20  # of one such file; a model of 1,000 layers, each apart, needs 10 MB
_DEEPEST = 100  # names in a path of a tree
_MOST_LAYERS, _LARGEST = 10_000, 1 << 30  # of a model; any other number of its PlugConfig
# Of an item: zstd makes at most so much of a byte, unless the arrays are zeros throughout.
_MOST_COMPRESSED = 1000
_FREE_BYTES = 1 << 24  # so small an item may hold anything


def describes_itself(name: str) -> bool:
    """Whether orbax reads a file of a step, by its name within it, as JSON."""
    return _SAYS.fullmatch(name) is not None


def find_false_declaration(path: epath.Path) -> str | None:
    """What is wrong with such a file, if anything is: "is no JSON ..."."""
    if (size := path.stat().length) > _MOST_BYTES:
        return f"has {size:,} bytes, and it may have {_MOST_BYTES:,}"
    try:
        said = json.loads(path.read_bytes())
    except RecursionError:
        return "is nested too deep"
    except ValueError as error:
        return f"is no JSON: {error}"
    if not isinstance(said, dict):
        return "is no JSON object"
    return _false_tree(said) if path.name == _TREE else None


def find_false_model(config: Mapping[str, Any]) -> str | None:
    """What no model has of the fields of a PlugConfig, if there is any: its shapes are made."""
    for name, value in config.items():
        most = _MOST_LAYERS if name.endswith("_layers") else _LARGEST
        if isinstance(value, int) and value > most:
            return f"declares {name} = {value:,}"
    return None


def find_false_arrays(
    arrays: Iterable[tuple[str, tuple[int, ...], int, tuple[int, ...]]], stored: int
) -> str | None:
    """What no file can hold of the arrays that an item declares, if there is any.

    Args:
        arrays: of each its name, shape, bytes of an element and shape of its chunks.
        stored: the bytes of the item's files.
    """
    total = 0
    for name, shape, itemsize, chunk in arrays:
        total += math.prod(shape) * itemsize
        if len(chunk) != len(shape) or any(
            c > max(1, n) for c, n in zip(chunk, shape, strict=False)
        ):
            return f"declares {name} of shape {shape} in chunks of {chunk}"
    if total > max(_FREE_BYTES, _MOST_COMPRESSED * stored):
        return f"declares arrays of {total:,} bytes, and its files have {stored:,}"
    return None


def _false_tree(said: dict[str, Any]) -> str | None:
    """Names become names of files where arrays are not in a database, which ours always are."""
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
