"""The vectors of rows as one NumPy file."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

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

    Raises:
        PlugError: there is no space for all vectors, or they cannot be written.
    """
    part = _part(path)
    with _reported(path):
        open(part, "xb").close()  # must not exist
    try:
        with open(part, "wb") as file:
            with _reported(path):
                _reserve(file, shape)
            for row in rows:
                vector = np.empty(shape[1], "<f4")
                vector[:] = row.get("embedding", np.nan)
                with _reported(path):
                    file.write(vector.tobytes())
                yield row
            with _reported(path):
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def _reserve(file: BinaryIO, shape: tuple[int, int]) -> None:
    """Write the header, and take the space of the vectors: a full disk is better found now."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, file.tell() + 4 * math.prod(shape))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems without it
                raise


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlugError(f"cannot write {path}: {error.strerror or error}") from error


def _part(path: str) -> str:
    return f"{path}.tmp"
