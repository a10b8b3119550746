"""`plug-jax bench data`: how fast the tasks feed a model, beside plain Python in the same run."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.benchmarks import python_sampler
from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.features import ENCODER, Feature, feature_lengths, features_declared, side_of
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.data.pipeline.pipeline import DatasetConfig, make_iterator
from plug_jax.data.preprocessors.documents import batch_documents, tokenize_documents

if TYPE_CHECKING:
    from plug_jax.data.pipeline.batched_task import BatchedTask
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

_ALL = 1 << 62  # more elements than there are
_ROWS_A_BATCH = 8
_EXAMPLES_A_BATCH = 64


@dataclasses.dataclass(frozen=True)
class TaskSpeed:
    """Several timed passes of one way to make the examples of a task.

    Tokens are real ones, of both sides, padding not counted. Seconds are of all cores together.
    """

    name: str
    examples: int  # of a pass
    tokens: int
    core_seconds: tuple[float, ...]  # of each pass
    wall_seconds: tuple[float, ...]
    pad_fraction: Mapping[str, float] | None = None  # by side, of rows

    @property
    def tokens_per_core_second(self) -> float:
        """Median over the passes."""
        return self.tokens / statistics.median(self.core_seconds)

    def to_json(self) -> dict[str, Any]:
        """Rates (median over the passes, and of the slowest and fastest) and fill."""
        core, wall = statistics.median(self.core_seconds), statistics.median(self.wall_seconds)
        return {
            "examples": self.examples,
            "tokens": self.tokens,
            "examples_per_second_per_core": self.examples / core,
            "tokens_per_second_per_core": self.tokens / core,
            "tokens_per_second_per_core_range": [
                self.tokens / max(self.core_seconds),
                self.tokens / min(self.core_seconds),
            ],
            "tokens_per_second": self.tokens / wall,
            "pad_fraction": self.pad_fraction,
        }


def in_memory(source: seqio.DataSource, vocabulary: PlugVocabulary) -> list[list[list[int]]]:
    """The tokens of every document of the training split, by sentence, as Python lists."""
    texts = source.get_dataset("train", shuffle=False)
    blocks = tokenize_documents(batch_documents(texts), vocabulary=vocabulary)
    documents = []
    for block in blocks.as_numpy_iterator():
        ends = np.cumsum(block["sentence_lengths"])
        sentences = [part.tolist() for part in np.split(block["tokens"], ends[:-1])]
        borders = np.searchsorted(ends, np.cumsum(block["document_lengths"]), side="right")
        documents += [sentences[a:b] for a, b in itertools.pairwise([0, *borders])]
    return documents


def measure_task(
    task: BatchedTask,
    sample: Callable[[], Iterator[python_sampler.Example]],
    *,
    row_lengths: Mapping[str, int],
    epochs: int,
    passes: int,
    report: Callable[[str], None],
) -> list[TaskSpeed]:
    """Speeds of plain Python, and of the task from text and from its cache, padded and packed.

    These are batches as training reads them, of rows with one example or, packed, with several.
    "cache, one by one" is what seqio's tools read: examples of their own length, here padded by 64.
    Each of `passes` rounds goes once through all ways, so that what else the machine does falls on
    all of them. The task must be cached, in a directory that seqio knows.

    Args:
      task: what is measured.
      sample: makes the same examples in plain Python, one pass of the data.
      row_lengths: tokens of a packed row by side.
      epochs: of the data in a pass of the pipeline; plain Python makes one.
      passes: how often everything is timed.
      report: called with a line for people who wait.
    """
    ways: dict[str, _Way] = {"python": _PythonWay(sample)}
    features = features_declared(task.output_features)
    for name, cached in (("text", False), ("cache", True)):
        examples = _examples(task.padded, cached, epochs)
        ways[name] = _RowsWay(examples, features, task.max_lengths, pack=False)
        ways[f"{name}, packed"] = _RowsWay(examples, features, row_lengths, pack=True)
    ways["cache, one by one"] = _ExamplesWay(_examples(task, True, epochs))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(passes):
        for name, way in ways.items():
            report(f"{task.name}: {name}, pass {round_ + 1} of {passes}")
            start = _cpu_seconds(), time.perf_counter()
            way.drain()
            seconds[name].append((_cpu_seconds() - start[0], time.perf_counter() - start[1]))
    return [
        TaskSpeed(
            name,
            way.examples,
            way.tokens,
            tuple(core for core, _ in seconds[name]),
            tuple(wall for _, wall in seconds[name]),
            way.pad_fraction,
        )
        for name, way in ways.items()
    ]


def measure_resuming(config: DatasetConfig, directory: str, *, batches: int) -> dict[str, float]:
    """Seconds to save and to restore the data position after `batches`, and its megabytes.

    Restoring is timed up to the position, not to the batch that follows. The first save, in which
    TensorFlow builds what all of them need, is not timed.
    """
    iterator = make_iterator(config)
    for _ in range(batches):
        next(iterator)
    iterator.save(directory)
    start = time.perf_counter()
    iterator.save(directory)
    saved = time.perf_counter()
    other = make_iterator(config)
    built = time.perf_counter()
    other.restore(directory)
    restored = time.perf_counter()
    files = [os.path.join(directory, name) for name in os.listdir(directory)]
    return {
        "batches": batches,
        "save_seconds": saved - start,
        "restore_seconds": restored - built,
        "megabytes": sum(map(os.path.getsize, files)) / 1e6,
    }


class _Way(abc.ABC):
    """One way to make the examples; what a pass gives is counted once, untimed."""

    examples: int
    tokens: int
    pad_fraction: Mapping[str, float] | None = None

    @abc.abstractmethod
    def drain(self) -> None:
        """Makes all examples of a pass."""


class _PythonWay(_Way):
    def __init__(self, sample: Callable[[], Iterator[python_sampler.Example]]) -> None:
        self._make = sample
        sizes = [
            sum(example[name].size for name in _one_a_side(example)) for example in self._make()
        ]
        self.examples, self.tokens = len(sizes), sum(sizes)

    def drain(self) -> None:
        for _ in self._make():
            pass


def _one_a_side(features: Iterable[str]) -> list[str]:
    """A feature of each side, whose length is that of the others."""
    return [*{side_of(name): name for name in features}.values()]


def _examples(task: seqio.Task, use_cached: bool, epochs: int) -> tf.data.Dataset:
    return task.get_dataset(
        split="train",
        use_cached=use_cached,
        shuffle=True,
        seed=0,
        num_epochs=epochs,
        trim_output_features=False,
        try_in_mem_cache=False,
    )


class _DatasetWay(_Way):
    def __init__(self, batches: tf.data.Dataset) -> None:
        self._batches = without_autotuning(batches.prefetch(tf.data.AUTOTUNE))

    def drain(self) -> None:
        for _ in self._batches.skip(_ALL):  # nothing of it goes through Python
            pass


class _RowsWay(_DatasetWay):
    """Rows as training reads them, of one example each or packed."""

    def __init__(
        self,
        examples: tf.data.Dataset,
        features: Sequence[Feature],
        row_lengths: Mapping[str, int],
        *,
        pack: bool,
    ) -> None:
        lengths = feature_lengths(row_lengths, [feature.name for feature in features])
        batch_size = _ROWS_A_BATCH if pack else _EXAMPLES_A_BATCH
        converter = RowFeatureConverter(features, pack=pack)
        super().__init__(converter.batches(examples, lengths, batch_size))
        real, slots = dict.fromkeys(row_lengths, 0), dict.fromkeys(row_lengths, 0)
        self.examples = 0
        for batch in self._batches.as_numpy_iterator():
            self.examples += int(batch[f"{ENCODER}_segment_ids"].max(axis=1).sum())
            for side in row_lengths:
                ids = batch[f"{side}_segment_ids"]
                real[side] += int(np.count_nonzero(ids))
                slots[side] += ids.size
        self.tokens = sum(real.values())
        self.pad_fraction = {side: 1 - real[side] / slots[side] for side in row_lengths}


class _ExamplesWay(_DatasetWay):
    """Examples of their own length, one after the other, padded by 64 to the longest."""

    def __init__(self, examples: tf.data.Dataset) -> None:
        super().__init__(examples.padded_batch(_EXAMPLES_A_BATCH))
        texts = _one_a_side(examples.element_spec)
        none = (tf.constant(0, tf.int64), tf.constant(0, tf.int64))

        def add(counts: tuple[tf.Tensor, tf.Tensor], example: dict) -> tuple[tf.Tensor, tf.Tensor]:
            tokens = tf.add_n([tf.size(example[name], tf.int64) for name in texts])
            return counts[0] + 1, counts[1] + tokens

        self.examples, self.tokens = (int(count) for count in examples.reduce(none, add))


def _cpu_seconds() -> float:
    """Processor time of this process so far, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
