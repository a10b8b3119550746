"""Keeping the best checkpoint by a metric of the evaluations, and stopping early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any, Literal

from plug_jax.errors import PlugError
from plug_jax.field_types import check_fields


@dataclasses.dataclass(frozen=True)
class Best:
    """What is best, and how long to wait for better.

    The best checkpoint is kept beside the newest ones, and is what everything that opens the run's
    MODEL_DIR reads; only the run itself goes on from the newest.
    """

    metric: str  # of the evaluations, as MODEL_DIR/metrics.jsonl names it
    mode: Literal["max", "min"] = "max"
    patience: int | None = None  # evaluations in a row without a gain that end the run; None: never
    min_delta: float = 0.0  # a gain is of more than this

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patience is not None and self.patience < 1:
            raise PlugError(f"Best.patience must be 1 or more, or None, got {self.patience}")
        if not self.min_delta >= 0:
            raise PlugError(f"Best.min_delta must be 0 or more, got {self.min_delta}")

    def check(self, names: Set[str]) -> None:
        """PlugError unless the metric is one of those that an evaluation gives."""
        if self.metric not in names:
            raise PlugError(
                f"Best.metric: the evaluation has no {self.metric!r}; it has "
                f"{', '.join(sorted(names))}"
            )


class BestSoFar:
    """The evaluations of a run so far; those of an earlier process come from its metrics.jsonl."""

    def __init__(self, config: Best, records: Iterable[Mapping[str, Any]]) -> None:
        """`records` of metrics.jsonl, up to the checkpoint that the run goes on from."""
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
        """Whether this evaluation is the best yet. What is not finite never is.

        Raises:
            PlugError: the metric is not one of them.
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
        """The best is one of the checkpoints of `steps`: what could not be saved is none."""
        while self._bests and self._bests[-1][0] not in steps:
            self._bests.pop()

    @property
    def step(self) -> int | None:
        """Of the best; None: there is none yet."""
        return self._bests[-1][0] if self._bests else None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the best."""
        return self._bests[-1][1] if self._bests else {}

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited long enough."""
        return self._config.patience is not None and self._waited >= self._config.patience

    def _signed(self, value: float) -> float:
        """The more the better."""
        if not math.isfinite(value):
            return -math.inf
        return value if self._config.mode == "max" else -value
