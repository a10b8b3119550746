"""Batches on the devices: each process reads the rows that its own devices hold."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import seqio
from jax.sharding import NamedSharding

from plug_jax import partitioning
from plug_jax.config import PlugConfig
from plug_jax.data import pipeline
from plug_jax.data.batches import Counts, add_counts
from plug_jax.data.features import Feature
from plug_jax.data.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.training.processes import of_all_processes


class Feed(Iterator[dict[str, jax.Array]]):
    """Iterates over batches: global arrays, [batch_size, row length] of each feature of a row."""

    def __init__(
        self,
        data: DatasetConfig,
        features: Sequence[Feature],
        *,
        model: PlugConfig,
        sharding: NamedSharding,
    ) -> None:
        """Rows hold `features`; `sharding` is a batch's, rows over devices.

        Raises PlugError if the data cannot be opened or shared, and later, from `__next__`, for an
        example that does not fit its row or the model.
        """
        self._share = share_of(jax.process_index(), rows_by_process(sharding))
        self._batches = pipeline.make_iterator(
            data, features, process_index=self._share.index, process_count=self._share.count
        )
        check_example_lengths(data, model)
        self._model, self._sharding = model, sharding
        self._ahead: dict[str, np.ndarray] | None = None  # read, and not yet asked for

    def __iter__(self) -> Self:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, jax.Array]:
        """The next batch, on its way to the devices."""
        return partitioning.put_batch(self._next_rows(), self._sharding)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """What this process reads of each batch that follows: [rows, row length] by feature."""
        with contextlib.suppress(StopIteration):
            while True:
                yield self._next_rows()

    def read_ahead(self) -> None:
        """Read the next batch now, for `__next__` to give: what is wrong with it shows at once.

        The place cannot be saved before that.
        """
        if self._ahead is None:
            self._ahead = self._read()

    def _next_rows(self) -> dict[str, np.ndarray]:
        batch = self._read() if self._ahead is None else self._ahead
        self._ahead = None
        return batch

    def _read(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        check_positions(batch, self._model)
        return batch

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the place in the data; of processes that read the same rows, the first does."""
        assert self._ahead is None, "the place is after a batch that nobody had"
        if self._share.leader:
            self._batches.save(directory)

    def restore(
        self, directory: str | os.PathLike[str], *, restart_changed: bool = False
    ) -> str | None:
        """Go to the place that `save` wrote; returns what a person should know of it.

        `restart_changed`: where it is in other data than these, stay at their beginning instead.
        PlugError without it.
        """
        self._ahead = None
        found = self._batches.changes_since(directory)
        if restart_changed:
            of_all = of_all_processes(found)
            changed = sorted({change for changes in of_all for change in changes or ()})
            if changed or None in of_all:
                self._batches.start_after(directory)
                return "THE DATA START FROM THEIR BEGINNING (RESTART_CHANGED_DATA):\n  " + (
                    "\n  ".join(changed) or "the checkpoint does not say which ones it was of"
                )
        self._batches.restore(directory)
        if found is None:
            return (
                "the checkpoint is of a version that kept neither the settings of its data nor "
                "what they dropped: going on as if they were these, counting from 0"
            )
        return None

    def counts(self) -> Counts:
        """What all processes together "dropped" and "changed" on the way to the newest place.

        That is the one last saved or restored, over the whole run; see `BatchIterator.counts`. The
        same on each process.
        """
        return add_counts(of_all_processes(self._batches.counts() if self._share.leader else {}))


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


def check_example_lengths(data: DatasetConfig, model: PlugConfig) -> None:
    """PlugError if a task of `data` may give an example with more tokens than the model's table.

    Rows may be longer: positions begin anew with each of the examples in one. A task that is not
    one of ours does not say how long its examples are; `check_positions` finds those in batches.
    """
    for task in seqio.get_subtasks(pipeline.find_task(data.mixture_or_task_name)):
        lengths = {
            side: min(most, data.feature_lengths.get(side, most))
            for side, most in getattr(task, "max_lengths", {}).items()
        }
        # A decoder alone reads both, one after another.
        if lengths and not model.num_encoder_layers:
            lengths = {" and ".join(lengths): sum(lengths.values())}
        for side, longest in lengths.items():
            if longest > model.max_positions:
                raise PlugError(
                    f"examples of {task.name!r} have up to {longest:,} {side} tokens, but the "
                    f"model's position table has {model.max_positions:,} rows; shorten the task's "
                    "examples (max_length) or raise PlugConfig.max_positions"
                )


def check_positions(batch: Mapping[str, np.ndarray], model: PlugConfig) -> None:
    """PlugError for a position beyond the model's table: XLA would silently clamp it."""
    for name in ("encoder_positions", "decoder_positions"):
        if name in batch and (last := int(batch[name].max())) >= model.max_positions:
            raise PlugError(
                f"{name} reaches {last}, but the model's position table has {model.max_positions} "
                "rows; shorten the task's examples (max_length) or raise PlugConfig.max_positions"
            )
