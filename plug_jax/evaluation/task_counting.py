"""Counts the examples of a task into `TaskStatistics`, a few hundred at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from plug_jax.data.drops import change_counts, drop_counts
from plug_jax.data.feature_converters import PalmFeatureConverter, StructBertFeatureConverter
from plug_jax.data.features import DECODER, ENCODER, feature_lengths, side_of
from plug_jax.data.masking import MASK_SHARE, RANDOM_SHARE
from plug_jax.data.packing import DEFAULT_WINDOW
from plug_jax.errors import PlugError
from plug_jax.evaluation.decoded_examples import SENTENCE_LABELS, Example, Fate, fates
from plug_jax.evaluation.task_statistics import (
    NO_CHANCE,
    Fill,
    Lengths,
    Share,
    TaskStatistics,
    VocabularyUse,
)
from plug_jax.evaluation.task_targets import TaskTargets

if TYPE_CHECKING:
    from plug_jax.data.vocabularies import PlugVocabulary

_CHUNK = 512  # examples counted together
_TOP_PIECES = 40
_ROWS_OF_LENGTHS = 2  # a row holds so many of the longest example, unless the user says otherwise
_MOST_PACKED = 2 * DEFAULT_WINDOW  # examples that are packed, to see how full rows get


def count_examples(
    examples: Iterable[Example],
    vocabulary: PlugVocabulary | None,
    targets: TaskTargets,
    *,
    row_lengths: Mapping[str, int] | None = None,
) -> TaskStatistics:
    """Counts examples, and compares them with the targets; one pass, in bounded memory.

    Args:
      examples: of stage 1 or 2, without padding; or, where `vocabulary` is None, of any task: then
        only the lengths of the features of rank 1 are counted.
      vocabulary: of the examples' tokens.
      targets: what the task asks for.
      row_lengths: tokens of a packed row by side; for those missing, twice the longest example
        asked for (or found).

    Returns:
      The statistics, with all drops and changes that this process has counted so far
      (`plug_jax.data.drops`), which are the examples' own after `reset_counts()`.

    Raises:
      PlugError: an example whose features of one side differ in length.
    """
    if vocabulary is None:
        return _count_features(examples)
    tally = _Tally(vocabulary, targets)
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
        fill=measure_fill(packed, rows),
        vocabulary_use=tally.vocabulary_use(),
        drops=drop_counts(),
        changes=change_counts(),
    )


def measure_fill(examples: Sequence[Example], row_lengths: Mapping[str, int]) -> Fill | None:
    """Packs examples with the converter of their stage; None if none of them fits in a row."""
    converter_class = PalmFeatureConverter if DECODER in row_lengths else StructBertFeatureConverter
    names = [*converter_class.TASK_FEATURES]
    fitting = [
        example
        for example in examples
        if all(example[name].size <= row_lengths[side_of(name)] for name in names)
    ]
    if not fitting:
        return None
    dataset = tf.data.Dataset.from_tensor_slices(
        {
            name: tf.RaggedTensor.from_row_lengths(
                np.concatenate([example[name] for example in fitting]).astype(np.int32),
                [example[name].size for example in fitting],
            )
            for name in names
        }
    )
    # Slices of ragged tensors are tensors, but their spec says so only after a map.
    dataset = dataset.map(lambda example: {name: tf.identity(example[name]) for name in names})
    converted = converter_class(pack=True)(dataset, feature_lengths(row_lengths, names))
    rows, tokens = 0, dict.fromkeys(row_lengths, 0)
    for row in converted.as_numpy_iterator():
        rows += 1
        for side in tokens:
            tokens[side] += int(np.count_nonzero(row[f"{side}_segment_ids"]))
    return Fill(len(fitting), rows, dict(row_lengths), tokens)


class _Tally:
    """Running counts over the examples of stage 1 or 2."""

    def __init__(self, vocabulary: PlugVocabulary, targets: TaskTargets) -> None:
        self.examples = 0
        self._vocabulary = vocabulary
        self._targets = targets
        self._special = np.zeros(vocabulary.vocab_size, bool)
        self._special[list(vocabulary.special_ids)] = True
        self._lengths: dict[str, np.ndarray] = {}
        self._pieces = np.zeros(vocabulary.vocab_size, np.int64)  # tokens of each id
        self._fates = np.zeros(len(Fate), np.int64)
        self._labels: np.ndarray | None = None
        self._shuffles = False
        self._maskable = self._special_predicted = self._special_tokens = 0
        self._starts = 0  # where a window to shuffle may begin
        self._unshifted = self._decoder_positions = 0  # inputs that are not the target before

    def add(self, chunk: Sequence[Example]) -> None:
        """Counts a few more examples."""
        self.examples += len(chunk)
        flat = {name: np.concatenate([example[name] for example in chunk]) for name in chunk[0]}
        for side in (ENCODER, DECODER):
            names = [name for name in flat if side_of(name) == side]
            if not names:
                continue
            sizes = _sizes(chunk, names, side)
            self._lengths[side] = _add(self._lengths.get(side), np.bincount(sizes))
            (self._add_encoder if side == ENCODER else self._add_decoder)(flat, sizes)

    def _add_decoder(self, flat: Example, sizes: np.ndarray) -> None:
        inputs, targets = flat["decoder_input_tokens"], flat["decoder_target_tokens"]
        self._pieces = _add(self._pieces, np.bincount(targets))
        before = np.roll(targets, 1)
        before[np.cumsum(sizes) - sizes] = self._vocabulary.cls_id
        self._unshifted += int((inputs != before).sum())
        self._decoder_positions += inputs.size

    def _add_encoder(self, flat: Example, sizes: np.ndarray) -> None:
        original = flat["encoder_original_tokens"]
        self._pieces = _add(self._pieces, np.bincount(original))
        special = self._special[original]
        states = fates(flat, self._vocabulary.mask_id)
        self._fates = _add(self._fates, np.bincount(states[~special]))
        self._maskable += int((~special).sum())
        self._special_tokens += int(special.sum())
        self._special_predicted += int((special & (states != Fate.PLAIN)).sum())
        if "encoder_shuffled" in flat:
            self._shuffles = True
            fixed = special | np.isin(states, (Fate.MASKED, Fate.REPLACED, Fate.KEPT))
            self._starts += _count_starts(fixed, sizes, self._targets.shuffle_window or 1)
        if "sentence_labels" in flat:
            labels = flat["sentence_labels"][flat["sentence_weights"] > 0]
            self._labels = _add(self._labels, np.bincount(labels, minlength=len(SENTENCE_LABELS)))

    def lengths(self) -> dict[str, Lengths]:
        """The lengths by side."""
        targets = self._targets
        return {
            side: Lengths(
                side,
                tuple(counts.tolist()),
                targets.shortest.get(side),
                targets.longest.get(side),
                targets.uniform,
            )
            for side, counts in self._lengths.items()
        }

    def shares(self) -> Iterator[Share]:
        """All shares, those with a target first."""
        yield from self._mask_shares()
        if self._shuffles:
            yield from self._shuffle_shares()
        if self._labels is not None:
            yield from self._label_shares()
        yield Share(
            "special_predicted", "specials changed or predicted", self._special_predicted,
            self._special_tokens, "special tokens", 0.0, NO_CHANCE,
        )  # fmt: skip
        predicted = self._fates.sum() - self._fates[Fate.PLAIN] - self._fates[Fate.STRAY]
        yield Share(
            "stray", Fate.STRAY.label, int(self._fates[Fate.STRAY]),
            int(self._maskable - predicted), "tokens not predicted", 0.0, NO_CHANCE,
        )  # fmt: skip
        if DECODER in self._lengths:
            yield Share(
                "unshifted", "decoder inputs out of step", self._unshifted,
                self._decoder_positions, "decoder positions", 0.0, NO_CHANCE,
            )  # fmt: skip
        unknown, regular = int(self._pieces[self._vocabulary.unk_id]), self._regular_tokens()
        yield Share("unknown", "[UNK]", unknown, unknown + regular, "text tokens")

    def _mask_shares(self) -> Iterator[Share]:
        rate = self._targets.mask_rate
        counts = {fate: int(self._fates[fate]) for fate in (Fate.MASKED, Fate.REPLACED, Fate.KEPT)}
        selected = sum(counts.values())
        yield Share(
            "mask_rate", "chosen for masking", selected, self._maskable, "maskable tokens", rate,
            "each token is chosen on its own",
        )  # fmt: skip
        # A random piece can be the very token that it replaces, which then counts as kept.
        same = RANDOM_SHARE / len(self._vocabulary.regular_ids)
        asked = {
            Fate.MASKED: MASK_SHARE,
            Fate.REPLACED: RANDOM_SHARE - same,
            Fate.KEPT: 1 - MASK_SHARE - RANDOM_SHARE + same,
        }
        names = {
            Fate.MASKED: "seen as [MASK]",
            Fate.REPLACED: "seen as random",
            Fate.KEPT: "seen as itself",
        }
        for fate, count in counts.items():
            target = None if rate is None else asked[fate]
            yield Share(
                f"{fate.label}_share", names[fate], count, selected, "chosen tokens", target,
                "what becomes of a chosen token is drawn for each on its own",
            )  # fmt: skip

    def _shuffle_shares(self) -> Iterator[Share]:
        targets, shuffled = self._targets, int(self._fates[Fate.SHUFFLED])
        if targets.shuffle_window is not None and targets.marks_unmoved:
            window = targets.shuffle_window
            yield Share(
                "shuffle_rate", "windows shuffled", shuffled // window, self._starts,
                f"runs of {window} free tokens", targets.shuffle_rate,
                "runs are shuffled on their own; windows keep apart, so the bounds are a little "
                "wide",
            )  # fmt: skip
        yield Share("shuffled", "in a shuffled window", shuffled, self._maskable, "maskable tokens")

    def _label_shares(self) -> Iterator[Share]:
        assert self._labels is not None
        for label, count in enumerate(self._labels.tolist()):
            name = SENTENCE_LABELS.get(label, str(label))
            target = self._targets.label_share
            if target is not None and label not in SENTENCE_LABELS:
                target = 0.0
            yield Share(
                f"label_{label}", f"label {name}", count, int(self._labels.sum()), "labels",
                target,
                "labels are drawn on their own; but a group of one sentence can only get label 0, "
                "and one without a partner in another document only 1 or 2",
            )  # fmt: skip

    def vocabulary_use(self) -> VocabularyUse:
        """What the original texts hold."""
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
    """The sum of two arrays of counts, the shorter one filled up with zeros."""
    if total is None:
        return counts
    size = max(len(total), len(counts))
    return np.pad(total, (0, size - len(total))) + np.pad(counts, (0, size - len(counts)))


def _sizes(chunk: Sequence[Example], names: Sequence[str], side: str) -> np.ndarray:
    """The length of each example, int64 [n], which the features of a side share."""
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


def _count_starts(fixed: np.ndarray, sizes: np.ndarray, window: int) -> int:
    """How many runs of `window` tokens, none of them fixed, the examples of these sizes have."""
    if fixed.size < window:
        return 0
    example = np.repeat(np.arange(len(sizes)), sizes)
    number_fixed = np.concatenate([[0], np.cumsum(fixed)])
    free = number_fixed[window:] == number_fixed[:-window]
    return int((free & (example[window - 1 :] == example[: fixed.size - window + 1])).sum())


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
