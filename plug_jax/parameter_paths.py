"""Selecting parts of the parameter tree by path patterns.

A pattern is a path prefix: `embeddings`, `encoder/layers/mlp`, `heads/tags/kernel`. Each name may
have shell wildcards: `*/layers/*attention`. The layers of a stack are one array with a layer axis;
`layers:0-5` are the first six layers, `layers:5` is the sixth.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from plug_jax.errors import PlugError

# If a path has this name, axis 0 of its array is the layers'.
STACK = "layers"

_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of dicts by path, with names joined by slashes."""
    return flatten_dict(tree, sep="/")


def in_stack(path: str) -> bool:
    """Whether the array at a path is stacked over layers."""
    return STACK in path.split("/")


def layers_of(path: str, leaf: Any) -> int | None:
    """Number of layers of a stacked array; None if it is not stacked."""
    return leaf.shape[0] if in_stack(path) else None


def covered(setting: str, pattern: str, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves in `shapes` that a pattern of `setting` covers, by path.

    bool [layers] for stacked arrays, bool [] for others.

    Raises:
        PlugError: it covers nothing, or names layers that do not exist.
    """
    names = [part.partition(":")[0] for part in pattern.split("/")]
    ranges = [part.partition(":")[2] for part in pattern.split("/") if ":" in part]
    found = {}
    for path, leaf in shapes.items():
        parts = path.split("/")[: len(names)]
        if len(parts) == len(names) and all(map(fnmatch.fnmatchcase, parts, names)):
            count = layers_of(path, leaf)
            if not ranges:
                found[path] = np.ones((count,) if count else (), bool)
            else:
                found[path] = _range(setting, pattern, ranges, count)
    if not found:
        raise PlugError(
            f"{setting}: no parameter is at {pattern!r}{_near('/'.join(names), shapes)}"
        )
    return found


def _range(setting: str, pattern: str, ranges: list[str], count: int | None) -> np.ndarray:
    match = _LAYERS.fullmatch(ranges[0])
    if len(ranges) > 1 or match is None or count is None:
        raise PlugError(
            f"{setting}: {pattern!r} is not understood; layers are named 'encoder/layers:0-5' (the "
            "first six) or 'encoder/layers:5' (the sixth)"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < count:
        raise PlugError(f"{setting}: {pattern!r}: the layers are 0-{count - 1}, in order")
    layers = np.arange(count)
    return (first <= layers) & (layers <= last)


def _near(name: str, paths: Iterable[str]) -> str:
    """A hint: parts with similar names, else all parts."""
    known: set[str] = set()
    for path in paths:
        parts = path.split("/")
        known |= {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(sorted(part for part in known if part.count('/') < 2))}"
