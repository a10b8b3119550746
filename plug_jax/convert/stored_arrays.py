"""Arrays of a checkpoint on disk, written and read one layer at a time.

orbax saves a `LazyArray` without ever holding all of it: its layers are written as they are made.
The result on disk is that of a jax.Array (zarr in OCDBT), and is restored like one, into any
sharding.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from etils import epath

_SMALL = 2 << 20  # bytes: up to this, arrays are one chunk
# Number of chunks of a larger layer along an axis: as many as a mesh may shard it over.
# Three embed chunks of a host's devices that lie side by side are read once by each of them.
_CHUNKS = {"embed": 32, "mlp": 8, "heads": 8, "vocab": 8}
_IN_FLIGHT = 128 << 20  # bytes being written at a time
_CACHE_BYTES = 1 << 30  # of decoded chunks, for reading layers that share them


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is made layer by layer while it is saved."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    stacked: bool  # whether the first axis is the layers'; else it is made at once
    make: Callable[[int], np.ndarray]  # a layer by its index; the whole array by 0


def chunk_shape(
    shape: Sequence[int], axes: Sequence[str | None], dtype: np.dtype
) -> tuple[int, ...]:
    """Chunks of a stored array: one per layer, large layers cut along the mesh axes.

    A restore reads the chunks that its shards touch. [L, 8192, 32768] (embed, mlp) in float16 is
    stored in chunks of [1, 256, 4096], 2 MiB.
    """
    stacked = axes[0] == "layers"
    layer = shape[stacked:]
    if math.prod(layer) * dtype.itemsize > _SMALL:
        cuts = [
            math.gcd(n, _CHUNKS.get(a or "", 1)) for n, a in zip(layer, axes[stacked:], strict=True)
        ]
        layer = tuple(n // c for n, c in zip(layer, cuts, strict=True))
    return (1,) * stacked + tuple(layer)


class LazyArrayHandler(ocp.type_handlers.TypeHandler):
    """Saves LazyArrays, in order, one layer in memory at a time."""

    def typestr(self) -> str:
        """The leaf's type in the checkpoint, as which it is restored."""
        return "jax.Array"

    async def serialize(
        self,
        values: Sequence[LazyArray],
        infos: Sequence[Any],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        """Write every layer; nothing is left to do when it returns."""
        del args
        context = ts.Context({"file_io_sync": False})  # the caller syncs the whole directory
        for value, info in zip(values, infos, strict=True):
            store = ts.open(
                {**_spec(info.parent_dir, info.name), "metadata": {"compressor": None}},
                create=True,
                context=context,
                dtype=value.dtype.name,
                shape=value.shape,
                chunk_layout=ts.ChunkLayout(chunk_shape=value.chunks),
            ).result()
            for layer in range(value.shape[0] if value.stacked else 1):
                target = store[layer] if value.stacked else store
                _write(target, value.make(layer), rows=value.chunks[value.stacked])
        return []

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[Any]:
        """Not supported: arrays are restored as jax.Arrays."""
        raise NotImplementedError

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        """Not supported."""
        raise NotImplementedError


def _write(target: ts.TensorStore, block: np.ndarray, *, rows: int) -> None:
    """Write a block in slices of a multiple of `rows`, so that tensorstore buffers one slice."""
    step = max(1, _IN_FLIGHT // (rows * block[0].nbytes)) * rows
    for start in range(0, len(block), step):
        part = slice(start, min(start + step, len(block)))
        target[part].write(block[part]).result()


def write_arrays(tree: Any, directory: epath.Path) -> None:
    """Write a tree of LazyArrays to an orbax item's directory, in the caller's thread."""
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, LazyArrayHandler()))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that LazyArray is no jax.Array
    try:
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        handler.save(directory, args=ocp.args.PyTreeSave(tree))
    finally:
        logging.set_verbosity(verbosity)


class StoredTree:
    """The arrays of one item of a checkpoint, opened for reading parts of them."""

    def __init__(self, directory: epath.Path) -> None:
        """Of `<checkpoint>/<step>/<item>`."""
        self._directory = directory
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._opened: dict[str, ts.TensorStore] = {}

    def open(self, path: str) -> ts.TensorStore:
        """The array of a parameter, named by its path in the tree, joined by slashes."""
        if path not in self._opened:
            spec = _spec(self._directory, path.replace("/", "."))
            store = ts.open(spec, open=True, read=True).result()
            chunk: Any = store.chunk_layout.read_chunk.shape
            if chunk[0] > 1:  # layers share chunks: decode them once
                store = ts.open(spec, open=True, read=True, context=self._context).result()
            self._opened[path] = store
        return self._opened[path]


def _spec(directory: Any, name: str) -> dict[str, Any]:
    path = os.fspath(directory)
    base = path + "/" if path.startswith("gs://") else {"driver": "file", "path": path + "/"}
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": name},
        # Chunks of zeros are stored too: orbax treats a missing one as an error.
        "store_data_equal_to_fill_value": True,
    }
