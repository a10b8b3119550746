"""`plug-jax bench data`: how fast the tasks feed a model, beside plain Python in the same run."""

from __future__ import annotations

import abc
import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seqio
import tensorflow as tf

from plug_jax.benchmarks import python_sampler
from plug_jax.data.documents import batch_documents, tokenize_documents
from plug_jax.data.feature_converters import PalmFeatureConverter, StructBertFeatureConverter
from plug_jax.data.features import DECODER, ENCODER, feature_lengths
from plug_jax.data.pipeline import DatasetConfig, make_iterator

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

_ALL = 1 << 62  # more elements than there are
_ROWS_A_BATCH = 8
_EXAMPLES_A_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Speed:
    """Several timed passes of one way to make the examples of a task.

    Tokens are real ones, of both sides, padding not counted. Seconds are of all cores together.
    """

    name: str
    examples: int  # of a pass
    tokens: int
    core_seconds: tuple[float, ...]  # of each pass
    wall_seconds: tuple[float, ...]
    pad_fraction: Mapping[str, float] | None = None  # by side, of packed rows

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
        documents += [
            sentences[first:last] for first, last in zip([0, *borders], borders, strict=False)
        ]
    return documents


def measure_task(
    task: seqio.Task,
    documents: Sequence[python_sampler.Document],
    vocabulary: PlugVocabulary,
    *,
    row_lengths: Mapping[str, int],
    epochs: int,
    passes: int,
    report: Callable[[str], None],
) -> list[Speed]:
    """Speeds of plain Python, and of the task from text and from its cache, bare and packed.

    Each of `passes` rounds goes once through all ways, so that what else the machine does falls on
    all of them. The task must be cached, in a directory that seqio knows.

    Args:
      task: a stage-1 or stage-2 task.
      documents: what `in_memory` gives.
      vocabulary: that of the task.
      row_lengths: tokens of a packed row by side.
      epochs: of the data in a pass of the pipeline; plain Python makes one.
      passes: how often everything is timed.
      report: called with a line for people who wait.
    """
    ways: dict[str, _Way] = {"python": _PythonWay(DECODER in row_lengths, documents, vocabulary)}
    for name, cached in (("text", False), ("cache", True)):
        for lengths in (None, row_lengths):
            ways[f"{name}, packed" if lengths else name] = _PipelineWay(
                task, use_cached=cached, row_lengths=lengths, epochs=epochs
            )
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_ in range(passes):
        for name, way in ways.items():
            report(f"{task.name}: {name}, pass {round_ + 1} of {passes}")
            start = _cpu_seconds(), time.perf_counter()
            way.drain()
            seconds[name].append((_cpu_seconds() - start[0], time.perf_counter() - start[1]))
    return [
        Speed(
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
    """Seconds to save and to restore the place in the data after `batches`, and its megabytes.

    Restoring is timed up to the place, not to the batch that follows. The first save, in which
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
    def __init__(
        self,
        with_decoder: bool,
        documents: Sequence[python_sampler.Document],
        vocabulary: PlugVocabulary,
    ) -> None:
        sampler = (
            python_sampler.palm_examples if with_decoder else python_sampler.structbert_examples
        )
        self._make: Callable[[], Iterator[python_sampler.Example]] = lambda: sampler(
            documents, vocabulary
        )
        sizes = [
            sum(example[name].size for name in _TEXTS if name in example)
            for example in self._make()
        ]
        self.examples, self.tokens = len(sizes), sum(sizes)

    def drain(self) -> None:
        for _ in self._make():
            pass


_TEXTS = ("encoder_original_tokens", "decoder_target_tokens")


class _PipelineWay(_Way):
    def __init__(
        self,
        task: seqio.Task,
        *,
        use_cached: bool,
        row_lengths: Mapping[str, int] | None,
        epochs: int,
    ) -> None:
        examples = task.get_dataset(
            split="train",
            use_cached=use_cached,
            shuffle=True,
            seed=0,
            num_epochs=epochs,
            trim_output_features=False,
            try_in_mem_cache=False,
        )
        if row_lengths is None:
            self._count_examples(examples)
            self._dataset = examples.padded_batch(_EXAMPLES_A_BATCH).prefetch(tf.data.AUTOTUNE)
        else:
            converter = (
                PalmFeatureConverter() if DECODER in row_lengths else (StructBertFeatureConverter())
            )
            lengths = feature_lengths(row_lengths, converter.TASK_FEATURES)
            rows = converter(examples, task_feature_lengths=lengths)
            self._dataset = rows.batch(_ROWS_A_BATCH).prefetch(tf.data.AUTOTUNE)
            self._count_rows(row_lengths)

    def drain(self) -> None:
        for _ in self._dataset.skip(_ALL):  # nothing of it goes through Python
            pass

    def _count_examples(self, dataset: tf.data.Dataset) -> None:
        texts = [name for name in _TEXTS if name in dataset.element_spec]
        none = (tf.constant(0, tf.int64), tf.constant(0, tf.int64))

        def add(counts: tuple[tf.Tensor, tf.Tensor], example: dict) -> tuple[tf.Tensor, tf.Tensor]:
            tokens = tf.add_n([tf.size(example[name], tf.int64) for name in texts])
            return counts[0] + 1, counts[1] + tokens

        examples, tokens = dataset.reduce(none, add)
        self.examples, self.tokens = int(examples), int(tokens)

    def _count_rows(self, row_lengths: Mapping[str, int]) -> None:
        real, slots = dict.fromkeys(row_lengths, 0), dict.fromkeys(row_lengths, 0)
        self.examples = 0
        for batch in self._dataset.as_numpy_iterator():
            self.examples += int(batch[f"{ENCODER}_segment_ids"].max(axis=1).sum())
            for side in row_lengths:
                ids = batch[f"{side}_segment_ids"]
                real[side] += int(np.count_nonzero(ids))
                slots[side] += ids.size
        self.tokens = sum(real.values())
        self.pad_fraction = {side: 1 - real[side] / slots[side] for side in row_lengths}


def _cpu_seconds() -> float:
    """Processor time of this process so far, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
