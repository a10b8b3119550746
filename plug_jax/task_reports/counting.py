"""Counts the examples of a task into `TaskStatistics`, a few hundred at a time."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from plug_jax.data.autotuning import without_autotuning
from plug_jax.data.drops import change_counts, drop_counts
from plug_jax.data.features import DECODER, ENCODER, Feature, feature_lengths, side_of
from plug_jax.data.pipeline.feature_converters import RowFeatureConverter
from plug_jax.data.pipeline.packing import DEFAULT_WINDOW
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import Objectives, features_of
from plug_jax.objectives.examples import Example
from plug_jax.objectives.shares import NO_CHANCE, Share
from plug_jax.task_reports.statistics import Fill, Lengths, TaskStatistics, VocabularyUse

_CHUNK = 512  # examples counted together
_TOP_PIECES = 40
_ROWS_OF_LENGTHS = 2  # default row length, in longest examples
_MOST_PACKED = 2 * DEFAULT_WINDOW  # examples packed to measure how full rows are
# The feature that bounds a side's lengths in seqio's `sequence_length`.
_BOUNDS = {ENCODER: "encoder_input_tokens", DECODER: "decoder_target_tokens"}


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
    counts = _Counts(objectives, vocabulary, settings)
    remaining = iter(examples)
    while chunk := list(itertools.islice(remaining, _CHUNK)):
        counts.add(chunk)
    asked = _asked_lengths(objectives, settings, bounds or {})
    lengths = _lengths(counts.lengths, asked)
    rows = {one.name: _row_length(one, row_lengths or {}) for one in lengths}
    return TaskStatistics(
        examples=counts.examples,
        lengths=lengths,
        shares=(*counts.shares(), *(_too_long(one, rows[one.name]) for one in lengths)),
        fill=measure_fill(counts.first, counts.features, rows),
        vocabulary_use=counts.vocabulary_use(),
        drops=drop_counts(),
        changes=change_counts(),
    )


def measure_fill(
    examples: Sequence[Example], features: Sequence[Feature], row_lengths: Mapping[str, int]
) -> Fill | None:
    """Packs the features of examples into rows; None if no example fits in one."""
    features = [one for one in features if not one.name.endswith(("_segment_ids", "_positions"))]
    sides = {one.name: one.side for one in features}
    fitting = [
        {name: example[name] for name in sides}
        for example in examples
        if all(example[name].size <= row_lengths[side] for name, side in sides.items())
    ]
    if not fitting:
        return None
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(fitting),
        output_signature={one.name: tf.TensorSpec([None], one.dtype) for one in features},
    )
    rows = RowFeatureConverter(features)(dataset, feature_lengths(row_lengths, sides))
    number = sum(1 for _ in without_autotuning(rows).as_numpy_iterator())
    of_side = {side: name for name, side in sides.items()}
    tokens = {side: sum(one[of_side[side]].size for one in fitting) for side in row_lengths}
    return Fill(len(fitting), number, dict(row_lengths), tokens)


class _Counts:
    """Running counts, for each objective and for all examples."""

    def __init__(
        self, objectives: Objectives, vocabulary: PlugVocabulary, settings: TaskSettings
    ) -> None:
        self.examples = 0
        self.first: list[Example] = []  # those to pack
        self.features = features_of(objectives)
        self.lengths: defaultdict[str, Counter[int]] = defaultdict(Counter)  # by side
        self._vocabulary = vocabulary
        self._pieces = np.zeros(vocabulary.vocab_size, np.int64)  # tokens of each id
        texts = {side_of(name): name for one in objectives for name in one.text_features}
        self._texts = {ENCODER: "encoder_input_tokens"} | texts
        self._tallies = [t for one in objectives if (t := one.tally(vocabulary, settings))]

    def add(self, chunk: Sequence[Example]) -> None:
        """Counts a few more examples."""
        self.examples += len(chunk)
        self.first += chunk[: _MOST_PACKED - len(self.first)]
        names = [feature.name for feature in self.features]
        flat = {name: np.concatenate([example[name] for example in chunk]) for name in names}
        sizes = {}
        for side in (ENCODER, DECODER):
            if of_side := [name for name in names if side_of(name) == side]:
                sizes[side] = _sizes(chunk, of_side, side)
                self.lengths[side].update(sizes[side].tolist())
        for name in self._texts.values():
            self._pieces += np.bincount(flat[name], minlength=len(self._pieces))
        for tally in self._tallies:
            tally.add(flat, sizes)

    def shares(self) -> Iterator[Share]:
        """All shares, exact ones last."""
        found = [share for tally in self._tallies for share in tally.shares()]
        yield from sorted(found, key=lambda share: share.is_exact)
        unknown = int(self._pieces[self._vocabulary.unk_id])
        total = unknown + int(self._regular_pieces().sum())
        yield Share("unknown", "[UNK]", unknown, total, "text tokens")

    def vocabulary_use(self) -> VocabularyUse:
        """The vocabulary use of the original texts."""
        counts = self._regular_pieces()
        top = np.argsort(-counts, kind="stable")[:_TOP_PIECES]
        return VocabularyUse(
            size=len(self._vocabulary.regular_ids),
            used=int(np.count_nonzero(counts)),
            tokens=int(counts.sum()),
            top=tuple((self._vocabulary.id_to_piece(i), int(counts[i])) for i in top if counts[i]),
        )

    def _regular_pieces(self) -> np.ndarray:
        """Tokens of each id, int64 [V], without those of special pieces."""
        pieces = self._pieces.copy()
        pieces[list(self._vocabulary.special_ids)] = 0
        return pieces


def _count_features(examples: Iterable[Example]) -> TaskStatistics:
    number = 0
    lengths: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for example in examples:
        number += 1
        for name, value in example.items():
            if np.ndim(value) == 1:
                lengths[name][len(value)] += 1
    found = _lengths(lengths, {})
    return TaskStatistics(number, found, (), None, None, drop_counts(), change_counts())


def _lengths(
    counts: Mapping[str, Counter[int]], asked: Mapping[str, AskedLengths]
) -> tuple[Lengths, ...]:
    return tuple(
        Lengths(name, tuple(of[n] for n in range(max(of) + 1)), *asked.get(name, AskedLengths()))
        for name, of in counts.items()
    )


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
            if lengths.longest is not None:
                bound = bounds.get(_BOUNDS[side], lengths.longest)
                lengths = lengths._replace(longest=min(lengths.longest, bound))
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
