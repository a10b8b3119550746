"""What a task's examples hold, counted once and compared with what the task asks for."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the normal law: 95% lie within so many standard errors
_FAR_Z = 3.290526731491926  # and 99.9% within so many
_FAR_CONFIDENCE = 0.999
NO_CHANCE = "nothing: this must hold for every example"


class Verdict(enum.StrEnum):
    """Where a statistic lies; chance alone puts one in 20 beyond the bounds of 95%."""

    WITHIN = "within"
    DOUBTFUL = "doubtful"  # beyond the 95% bounds, within those of 99.9%
    OUTSIDE = "outside"

    @property
    def mark(self) -> str:
        """A sign that needs no colour."""
        return {"within": "✓", "doubtful": "?", "outside": "✗"}[self.value]


@dataclasses.dataclass(frozen=True)
class Share:
    """How many of a total, with a Wilson interval and what was asked for."""

    key: str
    label: str
    count: int
    total: int
    of: str  # what the total counts
    target: float | None = None
    assumes: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether a single case is one too many."""
        return self.target == 0

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing."""
        return self.count / max(self.total, 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95% Wilson score interval (Wilson 1927), (0, 1) for a total of nothing.

        >>> Share("heads", "heads", 15, 100, "throws").bounds
        (0.0930..., 0.2328...)
        """
        if not self.total:
            return 0.0, 1.0
        spread = _Z**2 / self.total
        center = (self.value + spread / 2) / (1 + spread)
        variance = self.value * (1 - self.value) / self.total + spread / (4 * self.total)
        half = _Z / (1 + spread) * math.sqrt(variance)
        low = 0.0 if self.count == 0 else center - half
        return low, 1.0 if self.count == self.total else center + half

    @property
    def verdict(self) -> Verdict | None:
        """Where the target lies in the interval; None without a target, or of nothing."""
        if self.target is None or not self.total:
            return None
        distance = abs(self.value - self.target)
        if distance * self.total < 1e-9:
            return Verdict.WITHIN
        error = math.sqrt(self.target * (1 - self.target) / self.total)
        return _verdict(distance, _Z * error, _FAR_Z * error)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        low, high = self.bounds
        return {
            **dataclasses.asdict(self),
            "value": self.value,
            "low": low,
            "high": high,
            **_flags(self.verdict),
        }


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the examples are on one side, or in one feature, and how long they should be."""

    name: str
    counts: tuple[int, ...]  # examples by their length, from 0
    shortest_asked: int | None = None
    longest_asked: int | None = None
    uniform: bool = False  # whether every length asked for should be as frequent

    @property
    def label(self) -> str:
        """What this is, in words."""
        return f"{self.name} length"

    @property
    def assumes(self) -> str:
        """What the comparison takes for granted."""
        if self.uniform:
            return (
                "documents are long: where less text is left than the longest window takes, a "
                "shorter one is drawn"
            )
        return NO_CHANCE if self.longest_asked is not None else ""

    @property
    def total(self) -> int:
        """Examples."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Mean length, in tokens."""
        return float(np.average(np.arange(len(self.counts)), weights=self.counts))

    @property
    def mean_bounds(self) -> tuple[float, float] | None:
        """The normal 95% interval of the mean; None for a single example."""
        if self.total < 2:
            return None
        squares = (np.arange(len(self.counts)) - self.mean) ** 2
        variance = float(squares @ np.array(self.counts)) / (self.total - 1)
        half = _Z * math.sqrt(variance / self.total)
        return self.mean - half, self.mean + half

    @property
    def mean_asked(self) -> float | None:
        """The mean of the uniform law."""
        if not self.uniform or self.shortest_asked is None or self.longest_asked is None:
            return None
        return (self.shortest_asked + self.longest_asked) / 2

    @property
    def extremes(self) -> tuple[int, int]:
        """The shortest and the longest length that occurs."""
        present = np.flatnonzero(self.counts)
        return int(present[0]), int(present[-1])

    @property
    def beyond(self) -> int:
        """Examples shorter or longer than asked."""
        lengths = np.arange(len(self.counts))
        wrong = lengths < (self.shortest_asked or 0)
        if self.longest_asked is not None:
            wrong |= lengths > self.longest_asked
        return int(np.array(self.counts)[wrong].sum())

    @property
    def distance(self) -> float | None:
        """Kolmogorov's distance to the uniform law: the largest gap between cumulative shares."""
        low, high = self.shortest_asked, self.longest_asked
        if not self.uniform or low is None or high is None:
            return None
        lengths = np.arange(max(len(self.counts), high + 1))
        asked = np.clip((lengths - low + 1) / (high - low + 1), 0, 1)
        drawn = np.cumsum(np.pad(self.counts, (0, len(lengths) - len(self.counts)))) / self.total
        return float(np.abs(drawn - asked).max())

    @property
    def distance_bound(self) -> float | None:
        """What the distance stays below 95% of the time, by Massart's inequality (1990)."""
        return None if self.distance is None else _massart(self.total, CONFIDENCE)

    @property
    def verdict(self) -> Verdict | None:
        """None where nothing is asked; outside if any example is shorter or longer than asked."""
        if self.shortest_asked is None and self.longest_asked is None:
            return None
        if self.beyond:
            return Verdict.OUTSIDE
        if self.distance is None:
            return Verdict.WITHIN
        bounds = (_massart(self.total, level) for level in (CONFIDENCE, _FAR_CONFIDENCE))
        return _verdict(self.distance, *bounds)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it; `counts` as pairs of a length and its examples."""
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
            **_flags(self.verdict),
            "counts": [[length, n] for length, n in enumerate(self.counts) if n],
        }


@dataclasses.dataclass(frozen=True)
class Fill:
    """How full the rows are that the task's feature converter packs the examples into."""

    examples: int
    rows: int
    row_lengths: Mapping[str, int]  # by side
    tokens: Mapping[str, int]  # by side, padding left out

    @property
    def pad_fraction(self) -> dict[str, float]:
        """The share of the rows that is padding, by side."""
        return {
            side: 1 - self.tokens[side] / (self.rows * length)
            for side, length in self.row_lengths.items()
        }

    @property
    def examples_a_row(self) -> float:
        """Mean number of examples in a row."""
        return self.examples / self.rows

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            **dataclasses.asdict(self),
            "pad_fraction": self.pad_fraction,
            "examples_a_row": self.examples_a_row,
        }


@dataclasses.dataclass(frozen=True)
class VocabularyUse:
    """Which regular pieces the original texts hold (the encoder's, and the decoder's targets)."""

    size: int  # regular pieces of the vocabulary
    used: int  # of them, those that occur
    tokens: int  # regular tokens
    top: tuple[tuple[str, int], ...]  # the most frequent pieces, with their tokens

    @property
    def coverage(self) -> float:
        """The share of the regular pieces that occur."""
        return self.used / self.size

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {**dataclasses.asdict(self), "coverage": self.coverage}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What was counted, and when."""

    task: str
    split: str
    seed: int
    vocabulary: str  # its file and size, or "" for a task with other features
    feature_lengths: str  # as asked for, or ""
    made: str  # date and time


@dataclasses.dataclass(frozen=True)
class TaskStatistics:
    """Everything that `plug-jax inspect` counts, of a task of either stage or of any other."""

    examples: int
    lengths: tuple[Lengths, ...]
    shares: tuple[Share, ...]
    fill: Fill | None  # None for other tasks
    vocabulary_use: VocabularyUse | None  # None for other tasks
    drops: Mapping[str, int]
    changes: Mapping[str, int]

    @property
    def compared(self) -> list[Lengths | Share]:
        """The statistics that the task asks something of."""
        items: list[Lengths | Share] = [*self.lengths, *self.shares]
        return [item for item in items if item.verdict is not None]

    @property
    def disagreeing(self) -> list[Lengths | Share]:
        """Those of them that are doubtful or outside."""
        return [item for item in self.compared if item.verdict is not Verdict.WITHIN]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
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


def _verdict(distance: float, bound: float, far_bound: float) -> Verdict:
    if distance <= bound:
        return Verdict.WITHIN
    return Verdict.DOUBTFUL if distance <= far_bound else Verdict.OUTSIDE


def _flags(verdict: Verdict | None) -> dict[str, Any]:
    """The verdict and whether it is WITHIN, both None where nothing is asked."""
    return {
        "verdict": verdict and verdict.value,
        "ok": None if verdict is None else verdict is Verdict.WITHIN,
    }


def _massart(total: int, confidence: float) -> float:
    """The distance of Dvoretzky, Kiefer, Wolfowitz and Massart for `total` independent draws."""
    return math.sqrt(math.log(2 / (1 - confidence)) / (2 * total))
