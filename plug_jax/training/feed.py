"""Device feeding: each process reads the rows that its own devices hold."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
import seqio
from jax.sharding import NamedSharding

from plug_jax import partitioning
from plug_jax.config import PlugConfig
from plug_jax.data.features import Feature
from plug_jax.data.pipeline import pipeline
from plug_jax.data.pipeline.batches import Counts, add_counts
from plug_jax.data.pipeline.pipeline import DatasetConfig
from plug_jax.errors import PlugError
from plug_jax.hosts.processes import of_all_processes


class Feed(Iterator[dict[str, jax.Array]]):
    """Iterates over batches: global arrays, [batch_size, row length] for each row feature."""

    def __init__(
        self,
        data: DatasetConfig,
        features: Sequence[Feature],
        *,
        model: PlugConfig,
        sharding: NamedSharding,
    ) -> None:
        """Rows have `features`; `sharding` is the batch's, rows over devices.

        Raises PlugError if the data cannot be opened or shared, and later, from `__next__`, for an
        example that does not fit its row or the model.
        """
        self._share = share_of(jax.process_index(), rows_by_process(sharding))
        self._batches = pipeline.make_iterator(
            data, features, process_index=self._share.index, process_count=self._share.count
        )
        check_example_lengths(data, model)
        self._features, self._model, self._sharding = features, model, sharding
        self._ahead: dict[str, np.ndarray] | None = None  # read, but not yet returned

    def __iter__(self) -> Self:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, jax.Array]:
        """The next batch, being copied to the devices."""
        return partitioning.put_batch(self._next_rows(), self._sharding)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of each following batch: [rows, row length] by feature."""
        with contextlib.suppress(StopIteration):
            while True:
                yield self._next_rows()

    @property
    def streams(self) -> int:
        """The number of data streams."""
        return self._batches.streams

    def read_ahead(self) -> None:
        """Read the next batch now, for `__next__`, so that errors show at once.

        The position cannot be saved until it is returned.
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
        check_values(batch, self._features, self._model)
        return batch

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Save the data position; if several processes read the same rows, the first does."""
        assert self._ahead is None, "the data position is after a batch that nobody had"
        if self._share.leader:
            self._batches.save(directory)

    def restore(
        self, directory: str | os.PathLike[str], *, restart_changed: bool = False
    ) -> str | None:
        """Restore the position that `save` wrote; returns a note for the user, if any.

        `restart_changed`: if it is in other data than these, start from their beginning instead.
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
                "the checkpoint is from a version that saved neither its data settings nor its "
                "drop counts: continuing as if the settings were these, with counts from 0"
            )
        return None

    def counts(self) -> Counts:
        """What all processes together "dropped" and "changed" up to the newest position.

        That is the position last saved or restored, over the whole run; see `BatchIterator.counts`.
        Equal on all processes.
        """
        return add_counts(of_all_processes(self._batches.counts() if self._share.leader else {}))

    def counts_so_far(self) -> Counts:
        """What this process "dropped" and "changed" so far; nothing if another reads the same."""
        return self._batches.counts_so_far() if self._share.leader else {}


@dataclasses.dataclass(frozen=True)
class DataShare:
    """A process's shard of every batch: the `index`-th of `count` equal ones."""

    index: int
    count: int
    leader: bool  # whether it is the first process with this share


def rows_by_process(sharding: NamedSharding) -> dict[int, frozenset[int]]:
    """The rows on each process's devices, for a batch with one row per device."""
    size = sharding.num_devices
    rows: dict[int, set[int]] = collections.defaultdict(set)
    indices: Mapping[Any, Any] = sharding.devices_indices_map((size,))
    for device, (held, *_) in indices.items():
        rows[device.process_index].update(range(*held.indices(size)))
    return {process: frozenset(held) for process, held in rows.items()}


def share_of(process: int, rows: Mapping[int, frozenset[int]]) -> DataShare:
    """The share that `process` reads, given all processes' `rows`.

    If the tensor axis spans processes, several of them hold, and so read, the same rows. A
    process's rows need not be adjacent: a mesh follows the topology of a slice, not its hosts.

    Example: in {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}} the last process has the second of two
    shares, and is not its leader.

    Raises:
        PlugError: two processes hold partly the same rows.
    """
    shares = sorted(set(rows.values()), key=min)
    if sum(map(len, shares)) != len(frozenset().union(*shares)):
        raise PlugError(
            "on this mesh hosts share only some of the rows of a batch; choose a tensor axis "
            "that divides the number of devices per host, or is a multiple of it"
        )
    mine = rows[process]
    first = min(other for other, held in rows.items() if held == mine)
    return DataShare(shares.index(mine), len(shares), leader=process == first)


def check_example_lengths(data: DatasetConfig, model: PlugConfig) -> None:
    """PlugError if a task of `data` may give an example with more tokens than the model's table.

    Rows may be longer: positions restart with each example. Other people's tasks do not declare
    example lengths; `check_positions` checks their batches.
    """
    for task in seqio.get_subtasks(pipeline.find_task(data.mixture_or_task_name)):
        lengths = {
            side: min(most, data.feature_lengths.get(side, most))
            for side, most in getattr(task, "max_lengths", {}).items()
        }
        # A decoder alone reads both, concatenated.
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
    """PlugError for a position beyond the model's table: its embedding would be NaN."""
    for name in ("encoder_positions", "decoder_positions"):
        if name in batch and (last := int(batch[name].max())) >= model.max_positions:
            raise PlugError(
                f"{name} reaches {last}, but the model's position table has {model.max_positions} "
                "rows; shorten the task's examples (max_length) or raise PlugConfig.max_positions"
            )
    if not model.num_encoder_layers and (last := _last_of_one_text(batch)) >= model.max_positions:
        raise PlugError(
            f"the encoder's and decoder's tokens of an example, which a decoder alone reads as one "
            f"text, reach position {last}, but the model's position table has "
            f"{model.max_positions} rows; shorten the task's examples (max_length) or raise "
            "PlugConfig.max_positions"
        )


def _last_of_one_text(batch: Mapping[str, np.ndarray]) -> int:
    """The largest position where the decoder's positions continue the encoder's."""
    first, second = batch["encoder_segment_ids"], batch["decoder_segment_ids"]
    rows, most = len(first), 1 + int(max(first.max(), second.max()))
    row = np.arange(rows)[:, None]
    sizes = np.bincount((row * most + first).ravel(), minlength=rows * most).reshape(rows, most)
    return int(np.max(batch["decoder_positions"] + sizes[row, second], where=second > 0, initial=0))


def check_values(
    batch: Mapping[str, np.ndarray], features: Iterable[Feature], model: PlugConfig
) -> None:
    """PlugError for an id beyond the model's tables, or a label beyond its head's outputs.

    The embedding of such an id would be NaN, and the loss of such a label could fall forever.
    """
    for feature in features:
        if feature.dtype != "int32":
            continue
        if feature.name == "encoder_token_types":  # the model may have more than our tasks use
            limit, of = model.num_token_types, "the model's token types (num_token_types) are"
        elif feature.values is None:
            limit, of = model.vocab_size, "the vocabulary's ids are"
        else:
            limit, of = feature.values, "the run's objectives take"
        values = batch[feature.name]
        if values.view(np.uint32).max(initial=0) >= limit:  # negative ones are the largest there
            wrong = values[(values < 0) | (values >= limit)][0]
            raise PlugError(
                f"the task's feature {feature.name} has the value {wrong:,}, and {of} 0 to "
                f"{limit - 1:,}: correct the task, or choose a model or OBJECTIVES that fit it"
            )
