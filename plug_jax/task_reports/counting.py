"""Counts the examples of a task into `TaskStatistics`, a few hundred at a time."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from plug_jax.data.drops import change_counts, drop_counts
from plug_jax.data.features import DECODER, ENCODER, Feature, side_of
from plug_jax.data.pipeline.packing import DEFAULT_WINDOW, assign_rows
from plug_jax.data.task_settings import AskedLengths, TaskSettings
from plug_jax.data.vocabularies.vocabulary import PlugVocabulary
from plug_jax.errors import PlugError
from plug_jax.objectives.composition import Objectives, features_of
from plug_jax.objectives.examples import Example
from plug_jax.objectives.shares import NO_CHANCE, Share
from plug_jax.task_reports.statistics import Fill, Lengths, TaskStatistics, VocabularyUse

_CHUNK = 512  # examples counted together
_TOP_PIECES = 40
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
      objectives, vocabulary, settings: the task's.
      row_lengths: tokens of a packed row by side; by default the bound of the side, or else twice
        the longest example requested (or found).
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
    bounds = bounds or {}
    limits = {one.side: bounds[one.name] for one in counts.features if one.name in bounds}
    asked = {side: of for one in objectives for side, of in one.asked_lengths(settings).items()}
    lengths = _lengths(counts.lengths, asked, bounds)
    rows = {one.name: 2 * max(one.longest_asked or 0, one.extremes[1]) for one in lengths}
    rows |= row_lengths or limits
    use = _vocabulary_use(counts.pieces, vocabulary)
    unknown = int(counts.pieces[vocabulary.unk_id])
    shares = [share for tally in counts.tallies for share in tally.shares()]
    return TaskStatistics(
        examples=counts.lengths[ENCODER].total(),
        lengths=lengths,
        shares=(
            *sorted(shares, key=lambda share: share.is_exact),
            Share("unknown", "[UNK]", unknown, unknown + use.tokens, "text tokens"),
            *(_too_long(one, rows[one.name]) for one in lengths),
        ),
        fill=measure_fill(counts.first, counts.features, rows),
        vocabulary_use=use,
        drops=drop_counts(),
        changes=change_counts(),
    )


def measure_fill(
    examples: Sequence[Example], features: Sequence[Feature], row_lengths: Mapping[str, int]
) -> Fill | None:
    """Packs examples into rows as in training; None if no example fits in one."""
    name_of = {feature.side: feature.name for feature in features}
    sizes = [[example[name_of[side]].size for side in row_lengths] for example in examples]
    capacities = np.array([*row_lengths.values()])
    fitting = np.array([lengths for lengths in sizes if (lengths <= capacities).all()])
    if not fitting.size:
        return None
    windows = np.split(fitting, range(DEFAULT_WINDOW, len(fitting), DEFAULT_WINDOW))
    rows = sum(1 + int(assign_rows(window, capacities).max()) for window in windows)
    tokens = dict(zip(row_lengths, fitting.sum(axis=0).tolist(), strict=True))
    return Fill(len(fitting), rows, dict(row_lengths), tokens)


class _Counts:
    """Running counts, for each objective and for all examples."""

    def __init__(
        self, objectives: Objectives, vocabulary: PlugVocabulary, settings: TaskSettings
    ) -> None:
        self.features = features_of(objectives)
        self.first: list[Example] = []  # those to pack
        self.lengths: defaultdict[str, Counter[int]] = defaultdict(Counter)  # by side
        self.pieces = np.zeros(vocabulary.vocab_size, np.int64)  # tokens of each id
        self.tallies = [t for one in objectives if (t := one.tally(vocabulary, settings))]
        texts = {side_of(name): name for one in objectives for name in one.text_features}
        self._texts = {ENCODER: "encoder_input_tokens"} | texts

    def add(self, chunk: Sequence[Example]) -> None:
        """Counts a few more examples."""
        self.first += chunk[: _MOST_PACKED - len(self.first)]
        names = [feature.name for feature in self.features]
        flat = {name: np.concatenate([example[name] for example in chunk]) for name in names}
        sizes = {}
        for side in dict.fromkeys(map(side_of, names)):
            sizes[side] = _sizes(chunk, [name for name in names if side_of(name) == side], side)
            self.lengths[side].update(sizes[side].tolist())
        for name in self._texts.values():
            self.pieces += np.bincount(flat[name], minlength=len(self.pieces))
        for tally in self.tallies:
            tally.add(flat, sizes)


def _vocabulary_use(pieces: np.ndarray, vocabulary: PlugVocabulary) -> VocabularyUse:
    """The use of a vocabulary; `pieces`, int64 [V], are tokens by id."""
    regular = pieces.copy()
    regular[list(vocabulary.special_ids)] = 0
    top = np.argsort(-regular, kind="stable")[:_TOP_PIECES]
    return VocabularyUse(
        size=len(vocabulary.regular_ids),
        used=int(np.count_nonzero(regular)),
        tokens=int(regular.sum()),
        top=tuple((vocabulary.id_to_piece(i), int(regular[i])) for i in top if regular[i]),
    )


def _count_features(examples: Iterable[Example]) -> TaskStatistics:
    number = 0
    lengths: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for example in examples:
        number += 1
        for name, value in example.items():
            if np.ndim(value) == 1:
                lengths[name][len(value)] += 1
    found = _lengths(lengths, {}, {})
    return TaskStatistics(number, found, (), None, None, drop_counts(), change_counts())


def _lengths(
    counts: Mapping[str, Counter[int]],
    asked: Mapping[str, AskedLengths],
    bounds: Mapping[str, int],
) -> tuple[Lengths, ...]:
    """Lengths by side, or by feature if nothing is asked, where `bounds` limit what is asked."""
    found = []
    for name, numbers in counts.items():
        shortest, longest, uniform = asked.get(name, AskedLengths())
        if longest is not None:
            longest = min(longest, bounds.get(_BOUNDS[name], longest))
        by_length = tuple(numbers[length] for length in range(max(numbers) + 1))
        found.append(Lengths(name, by_length, shortest, longest, uniform))
    return tuple(found)


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


def _too_long(lengths: Lengths, row_length: int) -> Share:
    return Share(
        f"{lengths.name}_too_long", f"{lengths.name} too long for a row",
        sum(lengths.counts[row_length + 1 :]), lengths.total, f"examples (rows of {row_length:,})",
        0.0, NO_CHANCE,
    )  # fmt: skip
