"""Counts the examples of a task into `TaskStatistics`, a few hundred at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.drops import change_counts, drop_counts
from plug_jax.data.features import DECODER, ENCODER, Feature, feature_lengths, side_of
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.data.pipeline.packing import DEFAULT_WINDOW
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import Objectives
from plug_jax.objectives.examples import Example
from plug_jax.objectives.shares import NO_CHANCE, Share
from plug_jax.task_reports.statistics import Fill, Lengths, TaskStatistics, VocabularyUse

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary

_CHUNK = 512  # examples counted together
_TOP_PIECES = 40
_ROWS_OF_LENGTHS = 2  # default row length, in longest examples
_MOST_PACKED = 2 * DEFAULT_WINDOW  # examples packed to measure how full rows are
# The feature that bounds a side's lengths in seqio's `sequence_length`: the first of these.
_BOUNDS = ("encoder_input_tokens", "decoder_target_tokens")


def count_examples(
    examples: Iterable[Example],
    objectives: Objectives,
    vocabulary: PlugVocabulary | None,
    settings: TaskSettings,
    *,
    row_lengths: Mapping[str, int] | None = None,
    bounds: Mapping[str, int] | None = None,
) -> TaskStatistics:
    """Counts examples, and compares them with the task's settings, in one pass and bounded memory.

    Args:
      examples: of a task for these objectives, without padding; or, if `vocabulary` is None, of any
        task: then only the lengths of rank-1 features are counted.
      objectives: the examples' objectives.
      vocabulary: of the examples' tokens.
      settings: the task's.
      row_lengths: tokens of a packed row by side; by default twice the longest example requested
        (or found).
      bounds: the `sequence_length` that the dataset was made with, by feature.

    Returns:
      The statistics, with all drops and changes counted so far in this process
      (`plug_jax.data.drops`), which are the examples' own after `reset_counts()`.

    Raises:
      PlugError: an example whose features of one side differ in length.
    """
    if vocabulary is None:
        return _count_features(examples)
    tally = _Tallies(objectives, vocabulary, settings, bounds or {})
    packed: list[Example] = []
    for chunk in _chunks(examples):
        tally.add(chunk)
        packed += chunk[: _MOST_PACKED - len(packed)]
    if not tally.examples:
        return TaskStatistics(0, (), (), None, None, drop_counts(), change_counts())
    lengths = tally.lengths()
    rows = {side: _row_length(found, row_lengths or {}) for side, found in lengths.items()}
    return TaskStatistics(
        examples=tally.examples,
        lengths=tuple(lengths.values()),
        shares=(
            *tally.shares(),
            *(_too_long(found, rows[side]) for side, found in lengths.items()),
        ),
        fill=measure_fill(packed, tally.features, rows),
        vocabulary_use=tally.vocabulary_use(),
        drops=drop_counts(),
        changes=change_counts(),
    )


def measure_fill(
    examples: Sequence[Example], features: Sequence[Feature], row_lengths: Mapping[str, int]
) -> Fill | None:
    """Packs the features of examples into rows; None if no example fits in one."""
    features = [one for one in features if not one.name.endswith(("_segment_ids", "_positions"))]
    names = [feature.name for feature in features]
    fitting = [
        example
        for example in examples
        if all(example[name].size <= row_lengths[side_of(name)] for name in names)
    ]
    if not fitting:
        return None
    dataset = tf.data.Dataset.from_generator(
        lambda: ({name: example[name] for name in names} for example in fitting),
        output_signature={one.name: tf.TensorSpec([None], one.dtype) for one in features},
    )
    converted = RowFeatureConverter(features)(dataset, feature_lengths(row_lengths, names))
    rows, tokens = 0, dict.fromkeys(row_lengths, 0)
    for row in without_autotuning(converted).as_numpy_iterator():
        rows += 1
        for side in tokens:
            tokens[side] += int(np.count_nonzero(row[f"{side}_segment_ids"]))
    return Fill(len(fitting), rows, dict(row_lengths), tokens)


class _Tallies:
    """Running counts, for each objective and for all examples."""

    def __init__(
        self,
        objectives: Objectives,
        vocabulary: PlugVocabulary,
        settings: TaskSettings,
        bounds: Mapping[str, int],
    ) -> None:
        self.examples = 0
        found = {feature.name: feature for one in objectives for feature in one.features}
        self.features = tuple(found.values())
        texts = {side_of(name): name for one in objectives for name in one.text_features}
        self._texts = {ENCODER: "encoder_input_tokens"} | texts
        self._tallies = [t for one in objectives if (t := one.tally(vocabulary, settings))]
        self._asked = _asked_lengths(objectives, settings, bounds)
        self._vocabulary = vocabulary
        self._special = np.zeros(vocabulary.vocab_size, bool)
        self._special[list(vocabulary.special_ids)] = True
        self._lengths: dict[str, np.ndarray] = {}
        self._pieces = np.zeros(vocabulary.vocab_size, np.int64)  # tokens of each id

    def add(self, chunk: Sequence[Example]) -> None:
        """Counts a few more examples."""
        self.examples += len(chunk)
        names = [feature.name for feature in self.features]
        flat = {name: np.concatenate([example[name] for example in chunk]) for name in names}
        sizes = {}
        for side in (ENCODER, DECODER):
            of_side = [name for name in names if side_of(name) == side]
            if of_side:
                sizes[side] = _sizes(chunk, of_side, side)
                self._lengths[side] = _add(self._lengths.get(side), np.bincount(sizes[side]))
        for name in self._texts.values():
            self._pieces = _add(self._pieces, np.bincount(flat[name]))
        for tally in self._tallies:
            tally.add(flat, sizes)

    def lengths(self) -> dict[str, Lengths]:
        """The lengths by side."""
        return {
            side: Lengths(side, tuple(counts.tolist()), *self._asked.get(side, AskedLengths()))
            for side, counts in self._lengths.items()
        }

    def shares(self) -> Iterator[Share]:
        """All shares, exact ones last."""
        found = [share for tally in self._tallies for share in tally.shares()]
        yield from sorted(found, key=lambda share: share.is_exact)
        unknown, regular = int(self._pieces[self._vocabulary.unk_id]), self._regular_tokens()
        yield Share("unknown", "[UNK]", unknown, unknown + regular, "text tokens")

    def vocabulary_use(self) -> VocabularyUse:
        """The vocabulary use of the original texts."""
        vocabulary = self._vocabulary
        counts = np.where(self._special, 0, self._pieces)
        top = np.argsort(-counts, kind="stable")[:_TOP_PIECES]
        return VocabularyUse(
            size=len(vocabulary.regular_ids),
            used=int(np.count_nonzero(counts)),
            tokens=self._regular_tokens(),
            top=tuple((vocabulary.id_to_piece(i), int(counts[i])) for i in top if counts[i]),
        )

    def _regular_tokens(self) -> int:
        return int(self._pieces[~self._special].sum())


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def _add(total: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """The sum of two arrays of counts, the shorter one padded with zeros."""
    if total is None:
        return counts
    size = max(len(total), len(counts))
    return np.pad(total, (0, size - len(total))) + np.pad(counts, (0, size - len(counts)))


def _sizes(chunk: Sequence[Example], names: Sequence[str], side: str) -> np.ndarray:
    """The length of each example, int64 [n], shared by a side's features."""
    sizes = np.array([[example[name].size for name in names] for example in chunk])
    unequal = np.argwhere(sizes != sizes[:, :1])
    if unequal.size:
        example, feature = unequal[0]
        raise PlugError(
            f"An example has {sizes[example, 0]} values of {names[0]} but "
            f"{sizes[example, feature]} of {names[feature]}; the task must give all {side} "
            "features of an example the same length."
        )
    return sizes[:, 0]


def _asked_lengths(
    objectives: Objectives, settings: TaskSettings, bounds: Mapping[str, int]
) -> dict[str, AskedLengths]:
    """The lengths set by the objectives, by side, limited by the bounds by feature."""
    asked: dict[str, AskedLengths] = {}
    for one in objectives:
        for side, lengths in one.asked_lengths(settings).items():
            limits = [bounds[name] for name in _BOUNDS if side_of(name) == side and name in bounds]
            if lengths.longest is not None:
                lengths = lengths._replace(longest=min([lengths.longest, *limits]))
            asked[side] = lengths
    return asked


def _row_length(lengths: Lengths, asked: Mapping[str, int]) -> int:
    longest = max(lengths.longest_asked or 0, lengths.extremes[1])
    return asked.get(lengths.name, _ROWS_OF_LENGTHS * longest)


def _too_long(lengths: Lengths, row_length: int) -> Share:
    return Share(
        f"{lengths.name}_too_long", f"{lengths.name} too long for a row",
        sum(lengths.counts[row_length + 1 :]), lengths.total, f"examples (rows of {row_length:,})",
        0.0, NO_CHANCE,
    )  # fmt: skip


def _count_features(examples: Iterable[Example]) -> TaskStatistics:
    number = 0
    lengths: dict[str, np.ndarray] = {}
    for example in examples:
        number += 1
        for name, value in example.items():
            if np.ndim(value) == 1:
                lengths[name] = _add(lengths.get(name), np.bincount([len(value)]))
    found = tuple(Lengths(name, tuple(counts.tolist())) for name, counts in lengths.items())
    return TaskStatistics(number, found, (), None, None, drop_counts(), change_counts())
