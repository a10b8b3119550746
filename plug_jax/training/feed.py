"""Batches on the devices: each process reads the rows that its own devices hold."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from plug_jax import partitioning
from plug_jax.config import PlugConfig
from plug_jax.data import pipeline
from plug_jax.data.drops import drop_counts
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.errors import PlugError


class Feed(Iterator[dict[str, jax.Array]]):
    """Iterates over batches: global arrays, int32 [batch_size, row length] of each feature."""

    def __init__(self, data: DatasetConfig, *, model: PlugConfig, sharding: NamedSharding) -> None:
        """`sharding` is a batch's, rows over devices.

        Raises PlugError if the data cannot be opened or shared, and later, from `__next__`, for an
        example that does not fit its row or the model.
        """
        self._share = share_of(jax.process_index(), rows_by_process(sharding))
        self._batches = pipeline.make_iterator(
            data, process_index=self._share.index, process_count=self._share.count
        )
        self._model, self._sharding = model, sharding

    def __iter__(self) -> Self:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, jax.Array]:
        """The next batch, on its way to the devices."""
        batch = next(self._batches)
        check_positions(batch, self._model)
        return partitioning.put_batch(batch, self._sharding)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the place in the data; of processes that read the same rows, the first does."""
        if self._share.leader:
            self._batches.save(directory)

    def restore(self, directory: str | os.PathLike[str]) -> None:
        """Go to the place that `save` wrote."""
        self._batches.restore(directory)


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that a process reads: the `index`-th of `count` equal ones."""

    index: int
    count: int
    leader: bool  # whether it is the first of the processes with this share


def rows_by_process(sharding: NamedSharding) -> dict[int, frozenset[int]]:
    """The rows that the devices of each process hold, of a batch with one row for each device."""
    size = sharding.num_devices
    rows: dict[int, set[int]] = collections.defaultdict(set)
    indices: Mapping[Any, Any] = sharding.devices_indices_map((size,))
    for device, (held, *_) in indices.items():
        rows[device.process_index].update(range(*held.indices(size)))
    return {process: frozenset(held) for process, held in rows.items()}


def share_of(process: int, rows: Mapping[int, frozenset[int]]) -> Share:
    """What `process` reads, when every process holds `rows`.

    With the tensor axis across processes several of them hold, and so read, the same rows. Rows of
    a process need not be neighbours: a mesh follows the wires of a slice, not its hosts.

    Example: of {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}} the last process has the second of two
    shares, and is not the first to read it.

    Raises:
        PlugError: two processes hold some rows in common and some not.
    """
    shares = sorted(set(rows.values()), key=min)
    if sum(map(len, shares)) != len(frozenset().union(*shares)):
        raise PlugError(
            "this mesh cuts a batch into rows that hosts hold in part together and in part apart; "
            "choose the tensor axis so that it divides the devices of a host, or the reverse"
        )
    mine = rows[process]
    first = min(other for other, held in rows.items() if held == mine)
    return Share(shares.index(mine), len(shares), leader=process == first)


def total_drops() -> dict[str, int]:
    """What all processes together dropped while reading, by reason; the same on each of them."""
    mine = np.frombuffer(json.dumps(drop_counts()).encode(), np.uint8)
    if jax.process_count() == 1:
        return drop_counts()
    length = int(multihost_utils.process_allgather(np.array(mine.size)).max())
    padded = np.pad(mine, (0, length - mine.size), constant_values=ord(" "))
    total: collections.Counter[str] = collections.Counter()
    for text in multihost_utils.process_allgather(padded):
        total.update(json.loads(text.tobytes()))
    return dict(total)


def check_positions(batch: Mapping[str, np.ndarray], model: PlugConfig) -> None:
    """PlugError for a position beyond the model's table: XLA would silently clamp it."""
    for name in ("encoder_positions", "decoder_positions"):
        if name in batch and (last := int(batch[name].max())) >= model.max_positions:
            raise PlugError(
                f"{name} reaches {last}, but the model's position table has {model.max_positions} "
                "rows; shorten the task's examples (max_length) or raise PlugConfig.max_positions"
            )
