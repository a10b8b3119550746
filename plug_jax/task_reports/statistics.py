"""Statistics of a task's examples, compared with the task's settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from plug_jax.objectives.shares import CONFIDENCE, NO_CHANCE, Share, Verdict, verdict_json


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Actual and requested lengths of the examples on one side, or in one feature."""

    name: str
    counts: tuple[int, ...]  # examples by length, from 0
    shortest_asked: int | None = None
    longest_asked: int | None = None
    uniform: bool = False  # whether all requested lengths should be equally frequent

    @property
    def label(self) -> str:
        """A description."""
        return f"{self.name} length"

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
    def total(self) -> int:
        """Number of examples."""
        return sum(self.counts)

    @property
    def _values(self) -> np.ndarray:
        """The length of each example, in order of length."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def mean(self) -> float:
        """Mean length, in tokens."""
        return float(self._values.mean())

    @property
    def mean_bounds(self) -> tuple[float, float] | None:
        """The normal 95% interval of the mean; None for a single example."""
        if self.total < 2:
            return None
        half = stats.norm.isf((1 - CONFIDENCE) / 2) * stats.sem(self._values)
        return self.mean - half, self.mean + half

    @property
    def mean_asked(self) -> float | None:
        """The mean of the uniform distribution."""
        if not self.uniform or self.shortest_asked is None or self.longest_asked is None:
            return None
        return (self.shortest_asked + self.longest_asked) / 2

    @property
    def extremes(self) -> tuple[int, int]:
        """The shortest and the longest length that occurs."""
        return int(self._values[0]), int(self._values[-1])

    @property
    def beyond(self) -> int:
        """Number of examples shorter or longer than requested."""
        longest = math.inf if self.longest_asked is None else self.longest_asked
        wrong = (self._values < (self.shortest_asked or 0)) | (self._values > longest)
        return int(wrong.sum())

    @property
    def distance(self) -> float | None:
        """Kolmogorov's distance to the uniform distribution: the largest cumulative gap."""
        low, high = self.shortest_asked, self.longest_asked
        if not self.uniform or low is None or high is None:
            return None
        drawn = np.cumsum(self.counts) / self.total
        asked = stats.randint.cdf(np.arange(len(drawn)), low, high + 1)
        return float(np.abs(drawn - asked).max())

    @property
    def distance_bound(self) -> float | None:
        """The 95% bound of the distance, by Massart's inequality (1990)."""
        if self.distance is None:
            return None
        return math.sqrt(math.log(2 / (1 - CONFIDENCE)) / (2 * self.total))

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
        return {
            "total": self.total,
            "mean": self.mean,
            "mean_low": low,
            "mean_high": high,
            "mean_asked": self.mean_asked,
            "shortest": shortest,
            "longest": longest,
            "shortest_asked": self.shortest_asked,
            "longest_asked": self.longest_asked,
            "uniform": self.uniform,
            "assumes": self.assumes,
            "beyond": self.beyond,
            "distance": self.distance,
            "distance_bound": self.distance_bound,
            **verdict_json(self.verdict),
            "counts": [[length, n] for length, n in enumerate(self.counts) if n],
        }


@dataclasses.dataclass(frozen=True)
class Fill:
    """How full the rows packed by the task's feature converter are."""

    examples: int
    rows: int
    row_lengths: Mapping[str, int]  # by side
    tokens: Mapping[str, int]  # by side, without padding

    @property
    def pad_fraction(self) -> dict[str, float]:
        """The fraction of padding in rows, by side."""
        return {
            side: 1 - self.tokens[side] / (self.rows * length)
            for side, length in self.row_lengths.items()
        }

    @property
    def examples_a_row(self) -> float:
        """Mean number of examples in a row."""
        return self.examples / self.rows

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            **dataclasses.asdict(self),
            "pad_fraction": self.pad_fraction,
            "examples_a_row": self.examples_a_row,
        }


@dataclasses.dataclass(frozen=True)
class VocabularyUse:
    """The regular pieces used in the original texts (the encoder's, and the decoder's targets)."""

    size: int  # regular pieces in the vocabulary
    used: int  # regular pieces that occur
    tokens: int  # regular tokens
    top: tuple[tuple[str, int], ...]  # the most frequent pieces, with their counts

    @property
    def coverage(self) -> float:
        """The share of regular pieces that occur."""
        return self.used / self.size

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {**dataclasses.asdict(self), "coverage": self.coverage}


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
            "examples": self.examples,
            "confidence": CONFIDENCE,
            "lengths": {item.name: item.to_json() for item in self.lengths},
            "shares": {item.key: item.to_json() for item in self.shares},
            "fill": self.fill and self.fill.to_json(),
            "vocabulary_use": self.vocabulary_use and self.vocabulary_use.to_json(),
            "drops": dict(self.drops),
            "changes": dict(self.changes),
        }
