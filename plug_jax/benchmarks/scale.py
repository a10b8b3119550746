"""What the commands over text cost as it grows, and which planted duplicates a cache holds."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from plug_jax.benchmarks.scale_text import KEPT, MARK, Kind, PlantedText
from plug_jax.data.features import ENCODER
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.errors import PlugError
from plug_jax.plots import new_figure

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

GIGABYTE = 10**9
_TERABYTE = 1000  # gigabytes
_SECONDS_BETWEEN_SAMPLES = 0.1
_MARK_TOKENS = 24  # of a document, among which the mark is


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took, all its processes together."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int  # resident; pages that processes share count in each


def measure_command(command: Sequence[str], log: Path) -> Cost:
    """Runs a command, its output in `log`. PlugError with the end of that if it fails."""
    start = os.times().elapsed
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    done = threading.Event()
    samples: list[int] = []
    largest = 0  # of one process, whenever it was

    def sample() -> None:
        nonlocal largest
        while not done.wait(_SECONDS_BETWEEN_SAMPLES):
            held = [_held_bytes(pid) for pid in _tree(process.pid)]
            samples.append(sum(now for now, _ in held))
            largest = max([largest, *(most for _, most in held)])

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.terminate()
        raise
    finally:
        done.set()
        watcher.join()
    if process.returncode:
        *_, last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        raise PlugError(f"`{' '.join(command[2:5])} ...` failed: {last} (all of it: {log})")
    return Cost(
        wall_seconds=os.times().elapsed - start,
        cpu_seconds=usage.ru_utime + usage.ru_stime,  # with those of children that it waited for
        # Two samples in a row, as a process that was just forked seems to hold what its parent
        # does. Not `usage.ru_maxrss`, which has what this process held when it forked.
        peak_bytes=max([largest, *map(min, itertools.pairwise(samples))]),
    )


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it that still run."""
    yield pid
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it ended meanwhile
        return
    for child in " ".join(lists).split():
        yield from _tree(int(child))


def _held_bytes(pid: int) -> tuple[int, int]:
    """What a process holds in memory, and the most that it ever held."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    now, most = (int(fields.get(name, "0 kB").split()[0]) for name in ("VmRSS", "VmHWM"))
    return now * 1024, most * 1024


def read_packed(config: DatasetConfig, *, most: int | None) -> dict[str, int]:
    """Reads packed batches until they end, or after `most` real tokens; how many there were."""
    batches = tokens = 0
    for batch in make_iterator(config):
        batches += 1
        tokens += int(np.count_nonzero(batch[f"{ENCODER}_segment_ids"]))
        if most is not None and tokens >= most:
            break
    return {"batches": batches, "tokens": tokens}


def count_in_cache(
    shards: Sequence[str], vocabulary: PlugVocabulary, text: PlantedText, documents: int
) -> dict[str, int]:
    """What a cache of planted text holds that it should not, and the other way round.

    Args:
      shards: its files.
      vocabulary: what it was made with.
      text: the documents that it was made of, and
      documents: how many of them.

    Returns:
      By the lower-case name of EXACT, NEAR, SHORT and FOREIGN `<kind>_planted` and `<kind>_left`,
      documents that should have been left out and are there; `kept`, documents that should be
      there, and `falsely_removed`, those of them that are not; `unknown`, documents without a mark.
    """
    there = np.zeros(documents, np.int32)  # how often, by number
    unknown = 0
    for number in _marks(shards, vocabulary):
        if number is None or number >= documents:
            unknown += 1
        else:
            there[number] += 1
    dropped = [kind.name.lower() for kind in Kind if kind not in KEPT]
    counts = dict.fromkeys(
        (f"{name}_{what}" for name in dropped for what in ("planted", "left")), 0
    )
    counts |= {"kept": 0, "falsely_removed": 0, "unknown": unknown}
    for number in range(documents):
        kind = text.kind(number)
        name = kind.name.lower()
        if kind in KEPT:
            counts["kept"] += 1
            counts["falsely_removed"] += int(there[number] == 0)
            # An EXACT duplicate bears the mark of its original.
            counts["exact_left"] += int(max(there[number] - 1, 0))
        else:
            counts[f"{name}_planted"] += 1
            counts[f"{name}_left"] += int(there[number]) if kind != Kind.EXACT else 0
    return counts


def _marks(shards: Sequence[str], vocabulary: PlugVocabulary) -> Iterator[int | None]:
    """The number in the mark of each document of a cache; None for one that has no mark."""
    for record in tf.data.TFRecordDataset(list(shards)).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        tokens = features["tokens"].int64_list.value
        start = 0
        for length in features["document_lengths"].int64_list.value:
            beginning = vocabulary.decode(tokens[start : start + min(length, _MARK_TOKENS)])
            found = MARK.match(beginning.replace(" ", ""))
            yield int(found[1]) if found else None
            start += length


@dataclasses.dataclass(frozen=True)
class Law:
    """How the costs of a part grow, from those of the start: a run over very little text."""

    start_seconds: float  # of CPU
    by_size: Mapping[float, float]  # CPU seconds for each gigabyte more than that, by gigabytes
    peak_by_size: Mapping[float, int]  # bytes

    @property
    def seconds_a_gigabyte(self) -> float:
        """Of the largest size."""
        return self.by_size[max(self.by_size)]

    @property
    def spread(self) -> float:
        """By how much the dearest size costs more a gigabyte than the cheapest: 0.15 for 15%."""
        return max(self.by_size.values()) / min(self.by_size.values()) - 1

    @property
    def peak_growth(self) -> float:
        """Bytes of memory for each further byte of text, from the smallest to the largest size."""
        low, high = min(self.peak_by_size), max(self.peak_by_size)
        if low == high:
            return 0.0
        return (self.peak_by_size[high] - self.peak_by_size[low]) / (high - low) / GIGABYTE

    def hours(self, cores: int) -> float:
        """Over 1 TB, with so many cores that are all busy to the end."""
        return (self.start_seconds + self.seconds_a_gigabyte * _TERABYTE / cores) / 3600


def law_of(
    start: tuple[float, Mapping[str, Any]], by_size: Mapping[float, Mapping[str, Any]]
) -> Law:
    """The law of one part: `Cost`s as JSON has them, by gigabytes, the start's beside."""
    start_size, start_cost = start
    return Law(
        start_seconds=start_cost["cpu_seconds"],
        by_size={
            size: (cost["cpu_seconds"] - start_cost["cpu_seconds"]) / (size - start_size)
            for size, cost in sorted(by_size.items())
        },
        peak_by_size={size: cost["peak_bytes"] for size, cost in by_size.items()},
    )


def plot_laws(laws: Mapping[str, Law], path: Path) -> None:
    """CPU seconds a gigabyte and peak memory by the size of the text, a line for each part."""
    figure, axes = new_figure(2)
    sizes = sorted({size for law in laws.values() for size in law.by_size})
    for name, law in laws.items():
        axes[0].plot(sizes, [law.by_size[size] for size in sizes], "o-", label=name)
        axes[1].plot(sizes, [law.peak_by_size[size] / 1e9 for size in sizes], "o-", label=name)
    axes[0].set(ylabel="CPU seconds per GB, without the start", title="cost")
    axes[1].set(ylabel="GB, all processes", title="peak memory")
    for axis in axes:
        axis.set(xlabel="GB of text", xscale="log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
