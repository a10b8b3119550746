"""The vectors of rows as one NumPy file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from plug_jax.atomic_files import is_remote
from plug_jax.errors import PlugError

SUFFIX = ".npy"


def check_vector_file(path: str) -> None:
    """PlugError if `write_vectors` could not write."""
    if is_remote(path):
        raise PlugError(f"{path}: a {SUFFIX} file is written on this machine; write JSON lines")
    if os.path.exists(path):
        raise PlugError(f"{path} exists; remove it, or name another file")
    if os.path.lexists(_part(path)):
        raise PlugError(
            f"{_part(path)} exists, where {path} is written until it is complete: another run is "
            "writing it, or was killed. Remove it, or name another file"
        )
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise PlugError(f"there is no directory for {path}")


def write_vectors(
    rows: Iterable[Mapping[str, Any]], path: str, *, shape: tuple[int, int]
) -> Iterator[Mapping[str, Any]]:
    """Yield rows unchanged, and write their `embedding`s: float32 of `shape`, [rows, numbers].

    The file appears when it is complete; until then vectors are in `path`.tmp, not in memory. A row
    with an error instead of an embedding becomes NaN, so that row numbers agree.
    """
    part = _part(path)
    try:
        open(part, "xb").close()  # must not exist
    except OSError as error:
        raise PlugError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        vectors = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for number, row in enumerate(rows):
            vectors[number] = row.get("embedding", np.nan)
            yield row
        vectors.flush()
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def _part(path: str) -> str:
    return f"{path}.tmp"
