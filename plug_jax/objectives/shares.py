"""Proportions over examples, with confidence intervals and verdicts against a task's settings."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from scipy import stats

from plug_jax.objectives.examples import Example

CONFIDENCE = 0.95
_FAR_CONFIDENCE = 0.999
NO_CHANCE = "nothing: this must hold for every example"


class Verdict(enum.StrEnum):
    """The verdict on a statistic; by chance one in 20 is beyond the 95% bounds."""

    WITHIN = "within"
    DOUBTFUL = "doubtful"  # beyond the 95% bounds, within those of 99.9%
    OUTSIDE = "outside"

    @classmethod
    def by_chance(cls, probability: float) -> Verdict:
        """The verdict for a p-value."""
        if probability >= 1 - CONFIDENCE:
            return cls.WITHIN
        return cls.DOUBTFUL if probability >= 1 - _FAR_CONFIDENCE else cls.OUTSIDE

    @property
    def mark(self) -> str:
        """A mark that does not rely on colour."""
        return {"within": "✓", "doubtful": "?", "outside": "✗"}[self.value]


def verdict_json(verdict: Verdict | None) -> dict[str, Any]:
    """The verdict and whether it is WITHIN, both None without a target."""
    return {
        "verdict": verdict and verdict.value,
        "ok": None if verdict is None else verdict is Verdict.WITHIN,
    }


@dataclasses.dataclass(frozen=True)
class Share:
    """A count out of a total, with a Wilson interval and a target."""

    key: str
    label: str
    count: int
    total: int
    of: str  # what the total counts
    target: float | None = None
    assumes: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether no single exception is allowed."""
        return self.target == 0

    @property
    def value(self) -> float:
        """The share itself; 0 for a total of 0."""
        return self.count / max(self.total, 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95% Wilson score interval (Wilson 1927), (0, 1) for a total of 0.

        >>> Share("heads", "heads", 15, 100, "throws").bounds
        (0.0930..., 0.2328...)
        """
        if not self.total:
            return 0.0, 1.0
        interval = stats.binomtest(self.count, self.total).proportion_ci(CONFIDENCE, "wilson")
        return float(interval.low), float(interval.high)

    @property
    def verdict(self) -> Verdict | None:
        """By the score test, which Wilson's interval inverts; None without target or counts."""
        if self.target is None or not self.total:
            return None
        if self.target in (0, 1):
            return Verdict.WITHIN if self.value == self.target else Verdict.OUTSIDE
        error = math.sqrt(self.target * (1 - self.target) / self.total)
        return Verdict.by_chance(2 * stats.norm.sf(abs(self.value - self.target) / error))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        low, high = self.bounds
        return {
            **dataclasses.asdict(self),
            "value": self.value,
            "low": low,
            "high": high,
            **verdict_json(self.verdict),
        }


class Tally(Protocol):
    """Running counts of one objective over the examples of a task."""

    def add(self, flat: Example, sizes: Mapping[str, np.ndarray]) -> None:
        """Counts examples, concatenated by feature; `sizes`, int64 [n], by side."""

    def shares(self) -> Iterator[Share]:
        """What was counted."""
