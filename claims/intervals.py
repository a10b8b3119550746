"""Means over seeds, and how sure they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with Student's interval; of one seed there is none."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent values, one a seed.

    Example: 1, 2, 3 give 2 with [-0.48, 4.48]: the standard error 0.577 times 4.303.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there are no values")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    error = float(np.std(values, ddof=1)) / count**0.5
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Estimate(mean, mean - reach, mean + reach, count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of the differences ours - theirs by seed, which what a seed does to both leaves alone.

    Raises:
        ValueError: of different numbers of seeds.
    """
    return estimate([one - other for one, other in zip(ours, theirs, strict=True)])
