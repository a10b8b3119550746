"""Keeping the best checkpoint by an evaluation metric, and early stopping."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any, Literal

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields


def sign_of(metric: str) -> int:
    """1 if higher is better, -1 for losses and errors."""
    return -1 if metric.endswith(("loss", "perplexity", "rmse")) else 1


@dataclasses.dataclass(frozen=True)
class Best:
    """Which metric decides which checkpoint is best, and the patience of early stopping.

    The best checkpoint is kept in addition to the newest ones. Everything that opens the run's
    MODEL_DIR reads it, except the run itself, which resumes from the newest.
    """

    metric: str  # an evaluation metric, by its name in MODEL_DIR/metrics.jsonl
    mode: Literal["max", "min"] | None = None  # which is better; None: by the metric's name
    patience: int | None = None  # end the run after so many evaluations without a gain; None: never
    min_delta: float = 0.0  # a gain must exceed this

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patience is not None and self.patience < 1:
            raise PlugError(f"Best.patience must be 1 or more, or None, got {self.patience}")
        if not self.min_delta >= 0:
            raise PlugError(f"Best.min_delta must be 0 or more, got {self.min_delta}")

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return sign_of(self.metric) if self.mode is None else {"max": 1, "min": -1}[self.mode]

    def check(self, names: Set[str]) -> None:
        """PlugError unless evaluations have the metric."""
        if self.metric not in names:
            raise PlugError(
                f"Best.metric: the evaluation has no {self.metric!r}; it has "
                f"{', '.join(sorted(names))}"
            )


class BestSoFar:
    """The evaluations of a run so far; those of an earlier process come from its metrics.jsonl."""

    def __init__(self, config: Best, records: Iterable[Mapping[str, Any]]) -> None:
        """`records` of metrics.jsonl, up to the checkpoint from which the run resumes."""
        self._config = config
        self._reference = -math.inf  # what the next one has to exceed by min_delta
        self._waited = 0
        self._bests: list[tuple[int, dict[str, float]]] = []  # each better than those before it
        for record in records:
            values = dict(record)
            step, split = values.pop("step"), values.pop("split")
            if split == "validation":
                self.add(step, values)

    def add(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether this evaluation is the best so far. One that is not finite never is.

        Raises:
            PlugError: `values` lack the metric.
        """
        self._config.check(values.keys())
        name = self._config.metric
        value = self._signed(values[name])
        gained = value > self._reference + self._config.min_delta
        self._waited = 0 if gained else self._waited + 1
        if gained:
            self._reference = value
        better = not self._bests or value > self._signed(self.metrics[name])
        if better and math.isfinite(value):
            self._bests.append((step, dict(values)))
            return True
        return False

    def keep_stored(self, steps: Collection[int]) -> None:
        """Restrict the best to the checkpoints of `steps`: those that could be saved."""
        while self._bests and self._bests[-1][0] not in steps:
            self._bests.pop()

    @property
    def step(self) -> int | None:
        """Step of the best checkpoint; None if there is none yet."""
        return self._bests[-1][0] if self._bests else None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best checkpoint."""
        return self._bests[-1][1] if self._bests else {}

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self._config.patience is not None and self._waited >= self._config.patience

    def _signed(self, value: float) -> float:
        """Such that higher is better."""
        if not math.isfinite(value):
            return -math.inf
        return self._config.sign * value
