"""Statistics of a task's examples, compared with the task's settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from plug_jax.objectives.shares import CONFIDENCE, NO_CHANCE, Share, Verdict, verdict_json


@dataclasses.dataclass
class Lengths:
    """Actual and requested lengths, in tokens, of the examples on one side or in one feature."""

    name: str
    counts: tuple[int, ...]  # examples by length, from 0
    shortest_asked: int | None = None
    longest_asked: int | None = None
    uniform: bool = False  # whether all requested lengths should be equally frequent

    def __post_init__(self) -> None:
        self.label = f"{self.name} length"
        lengths = np.repeat(np.arange(len(self.counts)), self.counts)
        self.total = len(lengths)
        self.mean = float(lengths.mean())
        self.extremes = int(lengths[0]), int(lengths[-1])  # shortest and longest
        # The normal 95% interval of the mean, which a single example does not have.
        half = stats.norm.isf((1 - CONFIDENCE) / 2) * stats.sem(lengths) if self.total > 1 else None
        self.mean_bounds = None if half is None else (self.mean - half, self.mean + half)
        low, high = self.shortest_asked, self.longest_asked
        # Examples shorter or longer than requested.
        self.beyond = self.total - sum(self.counts[low or 0 : None if high is None else high + 1])
        # The requested mean; Kolmogorov's distance to the uniform distribution, which is the
        # largest cumulative gap, and its 95% bound by Massart's inequality (1990).
        self.mean_asked = self.distance = self.distance_bound = None
        if self.uniform and low is not None and high is not None:
            self.mean_asked = (low + high) / 2
            drawn = np.cumsum(self.counts) / self.total
            asked = stats.randint.cdf(np.arange(len(drawn)), low, high + 1)
            self.distance = float(np.abs(drawn - asked).max())
            self.distance_bound = math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * self.total))

    @property
    def assumes(self) -> str:
        """The assumptions of the comparison."""
        if self.uniform:
            return (
                "documents are long: where less text is left than the longest window takes, a "
                "shorter one is drawn"
            )
        return NO_CHANCE if self.longest_asked is not None else ""

    @property
    def verdict(self) -> Verdict | None:
        """None without a request; outside if any example is shorter or longer than requested."""
        if self.shortest_asked is None and self.longest_asked is None:
            return None
        if self.beyond:
            return Verdict.OUTSIDE
        if self.distance is None:
            return Verdict.WITHIN
        return Verdict.by_chance(2 * math.exp(-2 * self.total * self.distance**2))  # Massart's

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON; `counts` as pairs of a length and its number of examples."""
        low, high = self.mean_bounds or (None, None)
        shortest, longest = self.extremes
        found = ("total", "mean", "beyond", "distance", "distance_bound")
        asked = ("mean_asked", "shortest_asked", "longest_asked", "uniform", "assumes")
        return {
            **{name: getattr(self, name) for name in (*found, *asked)},
            **{"mean_low": low, "mean_high": high, "shortest": shortest, "longest": longest},
            **verdict_json(self.verdict),
            "counts": [[length, n] for length, n in enumerate(self.counts) if n],
        }


@dataclasses.dataclass
class Fill:
    """How full the rows packed by the task's feature converter are."""

    examples: int
    rows: int
    row_lengths: Mapping[str, int]  # by side
    tokens: Mapping[str, int]  # by side, without padding

    def __post_init__(self) -> None:
        self.examples_a_row = self.examples / self.rows
        of_side = self.row_lengths.items()
        self.pad_fraction = {side: 1 - self.tokens[side] / (self.rows * n) for side, n in of_side}


@dataclasses.dataclass
class VocabularyUse:
    """The regular pieces used in the original texts (the encoder's, and the decoder's targets)."""

    size: int  # regular pieces in the vocabulary
    used: int  # regular pieces that occur
    tokens: int  # regular tokens
    top: tuple[tuple[str, int], ...]  # the most frequent pieces, with their counts

    def __post_init__(self) -> None:
        self.coverage = self.used / self.size


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was counted, and when."""

    task: str
    split: str
    seed: int
    vocabulary: str  # its file and size, or "" for a task with other features
    feature_lengths: str  # as requested, or ""
    made: str  # date and time


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    """Everything that `plug-jax inspect` counts, for tasks of both stages or any others."""

    examples: int
    lengths: tuple[Lengths, ...]
    shares: tuple[Share, ...]
    fill: Fill | None  # None for other tasks
    vocabulary_use: VocabularyUse | None  # None for other tasks
    drops: Mapping[str, int]
    changes: Mapping[str, int]

    @property
    def compared(self) -> list[Lengths | Share]:
        """The statistics with a requested value."""
        items: list[Lengths | Share] = [*self.lengths, *self.shares]
        return [item for item in items if item.verdict is not None]

    @property
    def disagreeing(self) -> list[Lengths | Share]:
        """The compared statistics that are doubtful or outside."""
        return [item for item in self.compared if item.verdict is not Verdict.WITHIN]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            **vars(self),
            "confidence": CONFIDENCE,
            "lengths": {item.name: item.to_json() for item in self.lengths},
            "shares": {item.key: item.to_json() for item in self.shares},
            "fill": self.fill and vars(self.fill),
            "vocabulary_use": self.vocabulary_use and vars(self.vocabulary_use),
        }
