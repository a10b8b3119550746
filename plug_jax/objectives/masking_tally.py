"""Rates of masking and shuffling over many examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from plug_jax.data.features import ENCODER
from plug_jax.data.preprocessors.masking import MASK_SHARE, RANDOM_SHARE, masked_language_model
from plug_jax.data.preprocessors.word_order import shuffle_windows
from plug_jax.data.task_settings import TaskSettings
from plug_jax.objectives.examples import Corruption, Example, Fate
from plug_jax.objectives.shares import NO_CHANCE, Share

if TYPE_CHECKING:
    from plug_jax.data.vocabularies.vocabulary import PlugVocabulary


class MaskingTally:
    """Counts the fates of encoder tokens; see `shares.Tally`."""

    def __init__(
        self, vocabulary: PlugVocabulary, settings: TaskSettings, *, shuffles: bool
    ) -> None:
        """`shuffles`: whether examples mark tokens in shuffled windows."""
        self._vocabulary = vocabulary
        self._special = np.zeros(vocabulary.vocab_size, bool)
        self._special[list(vocabulary.special_ids)] = True
        self._rate: float | None = settings.get(masked_language_model, "mask_rate")
        self._shuffles = shuffles
        self._shuffle_rate: float | None = settings.get(shuffle_windows, "rate")
        self._window: int | None = settings.get(shuffle_windows, "window")
        self._marks_unmoved = not settings.get(shuffle_windows, "label_moved_only")
        self._fates = np.zeros(len(Fate), np.int64)
        self._maskable = self._special_predicted = self._special_tokens = 0
        self._starts = 0  # possible starts of a window to shuffle

    def add(self, flat: Example, sizes: Mapping[str, np.ndarray]) -> None:
        """Counts a few more examples."""
        corruption = Corruption.of(flat, self._vocabulary.mask_id)
        special, fates = self._special[corruption.original], corruption.fates
        self._fates += np.bincount(fates[~special], minlength=len(Fate))
        self._maskable += int((~special).sum())
        self._special_tokens += int(special.sum())
        self._special_predicted += int((special & (fates != Fate.PLAIN)).sum())
        if self._shuffles:
            fixed = special | np.isin(fates, (Fate.MASKED, Fate.REPLACED, Fate.KEPT))
            self._starts += _count_starts(fixed, sizes[ENCODER], self._window or 1)

    def shares(self) -> Iterator[Share]:
        """Shares of masking, of shuffling, and of what must not occur."""
        yield from self._mask_shares()
        if self._shuffles:
            yield from self._shuffle_shares()
        yield Share(
            "special_predicted", "specials changed or predicted", self._special_predicted,
            self._special_tokens, "special tokens", 0.0, NO_CHANCE,
        )  # fmt: skip
        predicted = self._fates.sum() - self._fates[Fate.PLAIN] - self._fates[Fate.STRAY]
        yield Share(
            "stray", Fate.STRAY.label, int(self._fates[Fate.STRAY]),
            int(self._maskable - predicted), "tokens not predicted", 0.0, NO_CHANCE,
        )  # fmt: skip

    def _mask_shares(self) -> Iterator[Share]:
        counts = {fate: int(self._fates[fate]) for fate in (Fate.MASKED, Fate.REPLACED, Fate.KEPT)}
        selected = sum(counts.values())
        yield Share(
            "mask_rate", "chosen for masking", selected, self._maskable, "maskable tokens",
            self._rate, "each token is chosen independently",
        )  # fmt: skip
        # A random piece can equal the token that it replaces, which then counts as kept.
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
            target = None if self._rate is None else asked[fate]
            yield Share(
                f"{fate.label}_share", names[fate], count, selected, "chosen tokens", target,
                "the fate of each chosen token is drawn independently",
            )  # fmt: skip

    def _shuffle_shares(self) -> Iterator[Share]:
        shuffled, window = int(self._fates[Fate.SHUFFLED]), self._window
        if window is not None and self._marks_unmoved:
            yield Share(
                "shuffle_rate", "windows shuffled", shuffled // window, self._starts,
                f"runs of {window} free tokens", self._shuffle_rate,
                "runs are shuffled independently; windows do not overlap, so the bounds are "
                "slightly too wide",
            )  # fmt: skip
        yield Share("shuffled", "in a shuffled window", shuffled, self._maskable, "maskable tokens")


def _count_starts(fixed: np.ndarray, sizes: np.ndarray, window: int) -> int:
    """Number of runs of `window` tokens without a fixed one, in examples of these sizes."""
    if fixed.size < window:
        return 0
    example = np.repeat(np.arange(len(sizes)), sizes)
    number_fixed = np.concatenate([[0], np.cumsum(fixed)])
    free = number_fixed[window:] == number_fixed[:-window]
    return int((free & (example[window - 1 :] == example[: fixed.size - window + 1])).sum())
